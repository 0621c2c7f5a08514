"""Comparisons as bits of an integer, and the positions of bits: LLVM functions of any target.

TVM cannot bind vectors of truth values. A program that calls these is emitted inside `functions`.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

Expr = Any

WORD = 64

_FUNCTIONS = """
declare i64 @llvm.cttz.i64(i64, i1)
define linkonce_odr i32 @wattune_first_bit(i64 %word) alwaysinline {
  %at = call i64 @llvm.cttz.i64(i64 %word, i1 true)
  %r = trunc i64 %at to i32
  ret i32 %r
}
declare i64 @llvm.ctpop.i64(i64)
define linkonce_odr i32 @wattune_count_bits(i64 %word) alwaysinline {
  %count = call i64 @llvm.ctpop.i64(i64 %word)
  %r = trunc i64 %count to i32
  ret i32 %r
}
"""
# Kernels of different lanes are linked into one library.
_COMPARISON = """
define linkonce_odr i64 @wattune_{name}_{n}(<{n} x float> %a, <{n} x float> %b) alwaysinline {{
  %found = fcmp {name} <{n} x float> %a, %b
  %bits = bitcast <{n} x i1> %found to i{n}
  %r = zext i{n} %bits to i64
  ret i64 %r
}}
"""


def functions(lanes: int = 0) -> Any:
    """Return the frame in which these and comparisons of ``lanes`` are known; 0: of none."""
    comparisons = (_COMPARISON.format(name=name, n=lanes) for name in ("oge", "ogt") if lanes)
    return T.attr(T.int32(0), "pragma_import_llvm", _FUNCTIONS + "".join(comparisons))


def reaching(values: Expr, bound: Expr) -> Expr:
    """Return, as int64, a bit for every lane that is not below the bound's."""
    return _compared("oge", values, bound)


def above(values: Expr, bound: Expr) -> Expr:
    """Return, as int64, a bit for every lane that is above the bound's."""
    return _compared("ogt", values, bound)


def _compared(name: str, values: Expr, bound: Expr) -> Expr:
    lanes = values.ty.dtype.lanes
    return T.call_pure_extern("int64", f"wattune_{name}_{lanes}", values, bound)


def first_bit(word: Expr) -> Expr:
    """Return the position of the lowest bit that is set; there must be one."""
    return T.call_pure_extern("int32", "wattune_first_bit", word)


def count_bits(word: Expr) -> Expr:
    """Return how many bits are set."""
    return T.call_pure_extern("int32", "wattune_count_bits", word)
