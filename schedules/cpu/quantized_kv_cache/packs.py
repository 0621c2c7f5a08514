"""Rounding to integers and saturating packs of x86, for vectors of 4, 8 and 16 lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

Expr = Any

_ROUND = {
    4: "llvm.x86.sse2.cvtps2dq",
    8: "llvm.x86.avx.cvt.ps2dq.256",
    16: "llvm.x86.avx512.mask.cvtps2dq.512",
}
_TO_16 = {
    4: "llvm.x86.sse41.packusdw",
    8: "llvm.x86.avx2.packusdw",
    16: "llvm.x86.avx512.packusdw.512",
}
_TO_8 = {
    4: "llvm.x86.sse2.packuswb.128",
    8: "llvm.x86.avx2.packuswb",
    16: "llvm.x86.avx512.packuswb.512",
}


def _intrinsic(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def to_nearest(value: Expr, lanes: int) -> Expr:
    """Round fp32 lanes to int32, ties to even; NaN gives the least integer (vcvtps2dq)."""
    operands = [value]
    if lanes == 16:
        # All lanes, in the rounding mode that is set.
        operands += [T.broadcast(T.int32(0), lanes), T.int16(-1), T.int32(4)]
    return _intrinsic(_ROUND[lanes], f"int32x{lanes}", *operands)


def pack_quads(quads: Sequence[Expr], lanes: int) -> Expr:
    """Narrow four int32 vectors to bytes, clipped at 0 and 255 (vpackusdw, vpackuswb).

    Each 128-bit part holds its four lanes of the first vector, of the second, and so on.
    """
    words = [
        _intrinsic(_TO_16[lanes], f"int16x{2 * lanes}", quads[i], quads[i + 1]) for i in (0, 2)
    ]
    packed = _intrinsic(_TO_8[lanes], f"int8x{4 * lanes}", *words)
    return T.reinterpret(f"uint8x{4 * lanes}", packed)
