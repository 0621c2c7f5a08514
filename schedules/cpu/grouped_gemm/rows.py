"""Rows between products: activations as the products take them, and outputs of the last sums.

widen      x[token] as float32
activate   silu(gate) * up of a row of sums
encode     a float32 row, rounded: bf16, the same bits as f32, or int8 with scale and totals
combine    the weighted sum of a token's rows, in float32, slot by slot
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.quantize import SMALLEST_ABSMAX
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.grouped_gemm.layout import INT8_OFFSET, ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import ACTIVATION_BYTES, Lists, Memory, Plan, Stage

Expr = Any
Buffer = Any

LANES = vector.LANES
F32 = f"float32x{LANES}"
I32 = f"int32x{LANES}"
_TOP = -0x10000
# Vectors of columns that are summed over the slots at once.
BLOCK = 8


@dataclass(frozen=True)
class RowMaker:
    """Emits the rows of a kernel; ``dtype`` is that of the caller's tensors."""

    plan: Plan
    memory: Memory
    lists: Lists
    dtype: str

    def flat(self, buffer: Buffer) -> Buffer:
        """View a caller's tensor as one row; bfloat16 as its bits."""
        count = T.int64(1)
        for extent in buffer.shape:
            count = count * extent
        kind = "uint16" if self.dtype == "bfloat16" else self.dtype
        return T.decl_buffer((count,), kind, data=buffer.data, align=2 if kind == "uint16" else 4)

    def widen(self, rows: Buffer, at: Expr, columns: int, padded: int, worker: Expr) -> None:
        """Emit the float32 row of the elements from ``at`` on, zero beyond the columns."""
        wide = self._wide(worker)
        with T.serial(columns // LANES) as i:
            kind = "uint16" if self.dtype == "bfloat16" else "float32"
            value = self._widened(rows.vload([at + i * LANES], f"{kind}x{LANES}"), LANES)
            vector.store(self.memory.wide, [wide + i * LANES], value)
        whole = columns // LANES * LANES
        with T.serial(columns - whole) as i:
            value = self._widened(rows[at + whole + i], 1)
            vector.store(self.memory.wide, [wide + whole + i], value)
        with T.serial(padded - columns) as i:
            vector.store(self.memory.wide, [wide + columns + i], T.float32(0))

    def activate(self, stage: Stage, position: Expr, padded: int, worker: Expr) -> None:
        """Emit the float32 row silu(gate) * up; a row of sums is gate, then up.

        With gate and up side by side the row of gate is that product already.
        """
        wide, product = self._wide(worker), stage.product
        sums, inner = self.memory.sums, product.rows // product.halves
        row = T.bind(self.memory.sums_at(product, position))
        lane = math.integer(0, LANES) + T.ramp(T.int32(0), 1, LANES)
        with T.serial(padded // LANES) as i:
            # Beyond the columns what is read belongs to the row, to the next one or to the slack.
            value = T.bind(sums.vload([row + i * LANES], F32))
            if stage.streams == 1:
                up = T.bind(sums.vload([row + i * LANES + product.half_rows], F32))
                value = gated(value, up)
            kept = T.broadcast(inner - i * LANES, LANES) > lane
            vector.store(
                self.memory.wide,
                [wide + i * LANES],
                T.Select(kept, value, math.real(0.0, LANES)),
            )

    def encode(self, product: ExpertLayout, position: Expr, worker: Expr) -> None:
        """Emit a row of activations from the float32 row, padded as the product reads it."""
        wide, count = self._wide(worker), product.padded_columns // LANES
        to = T.bind(self.activation_at(product, position))
        if self.plan.activation == "int8":
            self._quantize(product, position, wide, to)
            return
        size = ACTIVATION_BYTES[self.plan.activation] * LANES
        with T.serial(count) as i:
            value = T.bind(self.memory.wide.vload([wide + i * LANES], F32))
            bits = math.nearest_bf16(value, LANES)
            if self.plan.activation == "bf16":
                high = T.shift_right(T.reinterpret(f"uint32x{LANES}", bits), _each(16, "uint32"))
                bits = T.cast(high, f"uint16x{LANES}")
            else:
                bits = T.bitwise_and(bits, _each(_TOP, "int32"))
            vector.store(
                self.memory.activations, [to + i * size], T.reinterpret(f"uint8x{size}", bits)
            )

    def _quantize(self, product: ExpertLayout, position: Expr, wide: Expr, to: Expr) -> None:
        """Emit q = rint(row * 127 / absmax), its scale and its totals."""
        memory = self.memory
        largest = vector.array(LANES, "float32")
        vector.store(largest, [0], math.real(0.0, LANES))
        with T.serial(product.padded_columns // LANES) as i:
            bits = math.as_integer(memory.wide.vload([wide + i * LANES], F32), LANES)
            size = math.as_real(T.bitwise_and(bits, _each(0x7FFFFFFF, "int32")), LANES)
            vector.store(largest, [0], T.max(largest.vload([0], F32), size))
        scale = vector.array(1, "float32")
        most = T.max(_across(largest, T.max), T.float32(SMALLEST_ABSMAX))
        vector.store(scale, [0], T.float32(127) / most)
        vector.store(memory.scales, [memory.at("scales", position)], T.float32(1) / scale[0])
        group = product.lane_columns * product.group_steps if product.scale_groups else 0
        groups = max(1, product.scale_groups)
        vectors = (group or product.padded_columns) // LANES
        total = vector.array(LANES, "int32")
        with T.serial(groups) as g:
            vector.store(total, [0], math.integer(0, LANES))
            with T.serial(vectors) as i:
                at = T.bind((g * vectors + i) * LANES)
                scaled = memory.wide.vload([wide + at], F32) * T.broadcast(scale[0], LANES)
                q = T.bind(T.cast(T.nearbyint(scaled), I32))
                vector.store(total, [0], total.vload([0], I32) + q)
                vector.store(memory.activations, [to + at], T.cast(q, f"uint8x{LANES}"))
            found = _across(total, lambda a, b: a + b)
            value = found if product.scale_groups else found * INT8_OFFSET
            vector.store(memory.totals, [self.totals_at(position) + g], value)

    def combine(
        self, product: ExpertLayout, out: Buffer, token: Expr, shares: Buffer | None, slot: Expr
    ) -> None:
        """Emit an output row: the rows of all slots times their shares, or the row of one slot."""
        top_k, columns = self.plan.top_k, product.rows
        first = T.bind(token * top_k)
        row = T.bind(T.cast(token if shares is not None else first + slot, "int64") * columns)

        def whole(at: Expr, vectors: int) -> None:
            sums = self._combined(product, first, shares, slot, at, vectors)
            for v in range(vectors):
                value = self._narrowed(sums.load(v * LANES, F32), LANES)
                vector.store(out, [row + at + v * LANES], value)

        wide, done = BLOCK * LANES, columns // (BLOCK * LANES) * (BLOCK * LANES)
        with T.serial(columns // wide) as i:
            whole(T.bind(i * wide), BLOCK)
        with T.serial((columns - done) // LANES) as i:
            whole(T.bind(done + i * LANES), 1)
        if rest := columns % LANES:
            start = columns - rest
            sums = self._combined(product, first, shares, slot, T.int32(start), 1)
            with T.serial(rest) as i:
                value = self._narrowed(sums.buffers[0][i], 1)
                vector.store(out, [row + start + i], value)

    def _combined(
        self,
        product: ExpertLayout,
        first: Expr,
        shares: Buffer | None,
        slot: Expr,
        at: Expr,
        vectors: int,
    ) -> vector.Registers:
        """Emit the sums of some columns over a token's slots; one slot's row without shares."""
        sums = vector.Registers(vectors, "float32")
        for v in range(vectors):
            sums.store(v * LANES, math.real(0.0, LANES))

        def add(pair: Expr) -> None:
            position = T.bind(self.lists.load("position", pair))
            with T.If(position >= 0), T.Then():
                place = T.bind(self.memory.sums_at(product, position) + at)
                for v in range(vectors):
                    value = self.memory.sums.vload([place + v * LANES], F32)
                    if shares is not None:
                        share = T.broadcast(shares[pair], LANES)
                        value = vector.multiply_add(value, share, sums.load(v * LANES, F32))
                    sums.store(v * LANES, value)

        if shares is None:
            add(first + slot)
        else:
            with T.serial(self.plan.top_k) as j:
                add(first + j)
        return sums

    def activation_at(self, product: ExpertLayout, position: Expr) -> Expr:
        """Return where a position's row of activations starts, in bytes."""
        return self.memory.at("activations", T.cast(position, "int64") * self.plan.stride(product))

    def totals_at(self, position: Expr) -> Expr:
        """Return where a position's totals start."""
        return self.memory.at("totals", T.cast(position, "int64") * self.plan.scale_groups)

    def _wide(self, worker: Expr) -> Expr:
        return T.bind(self.memory.at("wide", T.cast(worker, "int64") * self.plan.width))

    def _widened(self, value: Expr, lanes: int) -> Expr:
        if self.dtype != "bfloat16":
            return value
        bits = T.cast(value, math.kind("int32", lanes))
        return math.as_real(T.shift_left(bits, math.integer(16, lanes)), lanes)

    def _narrowed(self, value: Expr, lanes: int) -> Expr:
        if self.dtype != "bfloat16":
            return value
        bits = math.nearest_bf16(T.bind(value), lanes)
        return T.cast(T.shift_right(bits, math.integer(16, lanes)), math.kind("uint16", lanes))


def gated(gate: Expr, up: Expr) -> Expr:
    """Return silu(gate) * up; both are bound."""
    power = T.bind(math.real(-math.LOG2_E, LANES) * gate)
    # exp2 takes what is not positive: sigmoid(x) = e / (1 + e) with e = 2^-|x log2 e|.
    size = T.bind(T.Select(power > math.real(0.0, LANES), -power, power))
    e = math.exp2(size, LANES)
    one = math.real(1.0, LANES)
    top = T.Select(power > math.real(0.0, LANES), e, one)
    return gate * (top / (one + e)) * up


def _each(value: int, kind: str) -> Expr:
    return T.broadcast({"int32": T.int32, "uint32": T.uint32}[kind](value), LANES)


def _across(buffer: Buffer, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine the lanes of an array pairwise."""
    values = [buffer[i] for i in range(LANES)]
    while len(values) > 1:
        values = [combine(values[i], values[i + 1]) for i in range(0, len(values), 2)]
    return values[0]
