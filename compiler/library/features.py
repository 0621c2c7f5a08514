"""How a library finds out whether a CPU has a feature: CPUID bits and saved registers."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from wattune.errors import TargetError
from wattune.schedules.target import Target

# Bits of XCR0: the registers that the operating system saves.
_AVX_STATE = 0b110
_AVX512_STATE = 0b1110_0000 | _AVX_STATE
_TILE_STATE = 0b11 << 17
_EAX, _EBX, _ECX, _EDX = range(4)


@dataclass(frozen=True)
class Bit:
    """Where CPUID says that a feature is there, and which saved state it needs."""

    leaf: int
    subleaf: int
    register: int
    bit: int
    saved: int = 0


CPUID_BITS = {
    "ssse3": Bit(1, 0, _ECX, 9),
    "fma": Bit(1, 0, _ECX, 12, _AVX_STATE),
    "sse4_2": Bit(1, 0, _ECX, 20),
    "movbe": Bit(1, 0, _ECX, 22),
    "popcnt": Bit(1, 0, _ECX, 23),
    "f16c": Bit(1, 0, _ECX, 29, _AVX_STATE),
    "lzcnt": Bit(0x80000001, 0, _ECX, 5),
    "bmi1": Bit(7, 0, _EBX, 3),
    "avx2": Bit(7, 0, _EBX, 5, _AVX_STATE),
    "bmi2": Bit(7, 0, _EBX, 8),
    "avx512f": Bit(7, 0, _EBX, 16, _AVX512_STATE),
    "avx512dq": Bit(7, 0, _EBX, 17, _AVX512_STATE),
    "avx512cd": Bit(7, 0, _EBX, 28, _AVX512_STATE),
    "avx512bw": Bit(7, 0, _EBX, 30, _AVX512_STATE),
    "avx512vl": Bit(7, 0, _EBX, 31, _AVX512_STATE),
    "avx512vbmi": Bit(7, 0, _ECX, 1, _AVX512_STATE),
    "avx512_vbmi2": Bit(7, 0, _ECX, 6, _AVX512_STATE),
    "gfni": Bit(7, 0, _ECX, 8),
    "avx512_vnni": Bit(7, 0, _ECX, 11, _AVX512_STATE),
    "amx_bf16": Bit(7, 0, _EDX, 22, _TILE_STATE),
    "avx512_fp16": Bit(7, 0, _EDX, 23, _AVX512_STATE),
    "amx_tile": Bit(7, 0, _EDX, 24, _TILE_STATE),
    "amx_int8": Bit(7, 0, _EDX, 25, _TILE_STATE),
    "avx_vnni": Bit(7, 1, _EAX, 4, _AVX_STATE),
    "avx512_bf16": Bit(7, 1, _EAX, 5, _AVX512_STATE),
}

# x86-64-v3 is what LLVM is told for a CPU with AVX2: it may use these too.
_WITH_AVX2 = ("bmi1", "lzcnt", "movbe", "popcnt", "sse4_2", "ssse3")
# x86-64-v2, which the host code of GPU kernels is compiled for.
_OF_GPU_HOSTS = ("popcnt", "sse4_2", "ssse3")


def required_features(target: Target) -> dict[str, Bit]:
    """Return what a target's kernels, or their host code, use, with where CPUID says it."""
    if target.kind == "cuda":
        x86 = platform.machine() == "x86_64"
        return {name: CPUID_BITS[name] for name in _OF_GPU_HOSTS if x86}
    if target.arch != "x86_64":
        if target.features:
            raise TargetError(f"no feature of {target.arch} can be checked: {target.features}")
        return {}
    names = [*(_WITH_AVX2 if target.has("avx2") else ()), *target.features]
    if unknown := [name for name in names if name not in CPUID_BITS]:
        raise TargetError(
            f"target feature {unknown[0]!r} has no known CPUID bit; allowed: {sorted(CPUID_BITS)}"
        )
    return {name: CPUID_BITS[name] for name in names}
