"""Quantise activations into the workspace: the first phase of every ternary GEMM kernel.

    x[t, :] -> q[t, :] int8 (padded with zeros), 1 / s[t], sum(q[t, :])

The sum is needed because weights are stored as w + 1: sum(q * w) = sum(q * (w + 1)) - sum(q).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace

Expr = Any
Buffer = Any
LANES = vector.LANES


@dataclass(frozen=True)
class Quantizer:
    """Emits the quantisation of one token; ``columns`` is the padded row that kernels read."""

    problem: TernaryGemm
    workspace: Workspace
    columns: int

    def emit(self, x: Buffer, x_scale: Buffer | None, work: Buffer, token: Expr) -> None:
        """Emit statements for one token."""
        if self.problem.dtype == "int8":
            self._copy_int8(x, work, token)
            if x_scale is not None:
                self._store_scale(work, token, T.float32(1) / x_scale[token])
        else:
            self._quantize(x, work, token)
        self._pad(work, token)

    def _row(self, token: Expr) -> Expr:
        return token * self.workspace.stride

    def _store_scale(self, work: Buffer, token: Expr, reciprocal: Expr) -> None:
        vector.store_as(work, self.workspace.scales + 4 * token, reciprocal)

    def _store_sum(self, work: Buffer, token: Expr, total: Expr) -> None:
        vector.store_as(work, self.workspace.sums + 4 * token, total)

    def _pad(self, work: Buffer, token: Expr) -> None:
        k = self.problem.in_features
        with T.serial(self.columns - k) as i:
            vector.store(work, [self._row(token) + k + i], T.uint8(0))

    def _copy_int8(self, x: Buffer, work: Buffer, token: Expr) -> None:
        k = self.problem.in_features
        total = vector.array(LANES, "int32")
        vector.store(total, [0], vector.splat(T.int32(0)))
        with T.serial(k // LANES) as i:
            values = x.vload([token, i * LANES], f"int8x{LANES}")
            wide = T.cast(values, f"int32x{LANES}")
            vector.store(total, [0], total.vload([0], f"int32x{LANES}") + wide)
            at = self._row(token) + i * LANES
            vector.store(work, [at], T.reinterpret(f"uint8x{LANES}", values))
        with T.serial(k % LANES) as i:
            at = k // LANES * LANES + i
            vector.store(total, [0], total[0] + T.cast(x[token, at], "int32"))
            vector.store(work, [self._row(token) + at], T.reinterpret("uint8", x[token, at]))
        self._store_sum(work, token, _across(total, lambda a, b: a + b))

    def _quantize(self, x: Buffer, work: Buffer, token: Expr) -> None:
        k = self.problem.in_features
        whole = k // LANES
        f32 = f"float32x{LANES}"
        largest = vector.array(LANES, "float32")
        vector.store(largest, [0], vector.splat(T.float32(0)))
        with T.serial(whole) as i:
            values = T.cast(x.vload([token, i * LANES], f"{self.problem.dtype}x{LANES}"), f32)
            vector.store(largest, [0], T.max(largest.vload([0], f32), _abs(values, LANES)))
        with T.serial(k % LANES) as i:
            value = T.cast(x[token, whole * LANES + i], "float32")
            vector.store(largest, [0], T.max(largest[0], _abs(value, 1)))
        scale = vector.array(1, "float32")
        absmax = _across(largest, T.max)
        vector.store(scale, [0], T.float32(127) / T.max(absmax, T.float32(1e-5)))
        self._store_scale(work, token, T.float32(1) / scale[0])

        total = vector.array(LANES, "int32")
        vector.store(total, [0], vector.splat(T.int32(0)))
        with T.serial(whole) as i:
            values = T.cast(x.vload([token, i * LANES], f"{self.problem.dtype}x{LANES}"), f32)
            q = _round(values * vector.splat(scale[0]), LANES)
            vector.store(total, [0], total.vload([0], f"int32x{LANES}") + q)
            at = self._row(token) + i * LANES
            vector.store(work, [at], T.cast(q, f"uint8x{LANES}"))
        with T.serial(k % LANES) as i:
            value = T.cast(x[token, whole * LANES + i], "float32")
            q = _round(value * scale[0], 1)
            vector.store(total, [0], total[0] + q)
            vector.store(work, [self._row(token) + whole * LANES + i], T.cast(q, "uint8"))
        self._store_sum(work, token, _across(total, lambda a, b: a + b))


def _abs(value: Expr, lanes: int) -> Expr:
    """Clear the sign bit."""
    kind, mask = ("float32", T.int32(0x7FFFFFFF))
    if lanes == 1:
        return T.reinterpret(kind, T.bitwise_and(T.reinterpret("int32", value), mask))
    bits = T.reinterpret(f"int32x{lanes}", value)
    return T.reinterpret(f"{kind}x{lanes}", T.bitwise_and(bits, vector.splat(mask, lanes)))


def _round(value: Expr, lanes: int) -> Expr:
    """Return clip(rint(value), -128, 127) in int32; rint rounds ties to even."""
    low, high = T.float32(-128), T.float32(127)
    if lanes > 1:
        low, high = vector.splat(low, lanes), vector.splat(high, lanes)
    clipped = T.max(T.min(T.nearbyint(value), high), low)
    return T.cast(clipped, "int32" if lanes == 1 else f"int32x{lanes}")


def _across(buffer: Buffer, combine: Any) -> Expr:
    """Combine the lanes of a local buffer pairwise."""
    values = [buffer[i] for i in range(LANES)]
    while len(values) > 1:
        values = [combine(values[i], values[i + 1]) for i in range(0, len(values), 2)]
    return values[0]
