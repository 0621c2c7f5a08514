"""How many blocks of a kernel an SM holds at once, by NVIDIA's tables of compute capabilities."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
# Registers come in pieces of a warp, shared memory in pieces of a block; a block takes some more.
_REGISTER_PIECE = 256
_SHARED_PIECE = 128
_SHARED_RESERVED = 1 << 10
_REGISTERS_OF_BLOCK = 64 << 10


@dataclass(frozen=True)
class Multiprocessor:
    """What an SM has room for; ``shared`` in bytes, ``block_shared`` of them for one block."""

    threads: int
    blocks: int
    shared: int
    block_shared: int
    registers: int = 64 << 10


_SMS = {
    "80": Multiprocessor(2048, 32, 164 << 10, 163 << 10),
    "86": Multiprocessor(1536, 16, 100 << 10, 99 << 10),
    "89": Multiprocessor(1536, 24, 100 << 10, 99 << 10),
    "90": Multiprocessor(2048, 32, 228 << 10, 227 << 10),
}


def multiprocessor(arch: str) -> Multiprocessor | None:
    """Return the SM of an architecture (``sm_90a``); None where it is not known."""
    return _SMS.get(arch.removeprefix("sm_").rstrip("af"))


def blocks_per_sm(arch: str, threads: int, registers: int, shared: int) -> int | None:
    """Return how many blocks fit, 0 where none does; None for an unknown architecture.

    ``shared`` is static and dynamic together. ``registers`` of a thread may be 0: unknown.
    """
    sm = multiprocessor(arch)
    if sm is None:
        return None
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // _REGISTER_PIECE) * _REGISTER_PIECE
    if shared > sm.block_shared or warps * of_warp > _REGISTERS_OF_BLOCK:
        return 0
    taken = -(-(shared + _SHARED_RESERVED) // _SHARED_PIECE) * _SHARED_PIECE
    fits = [sm.blocks, sm.threads // (warps * WARP), sm.shared // taken]
    if of_warp:
        fits.append(sm.registers // of_warp // warps)
    return min(fits)
