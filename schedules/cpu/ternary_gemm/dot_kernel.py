"""The loop nest of templates that decode weights in vector registers.

for block in parallel(row blocks):
    for tokens in blocks of token_block:
        sums[token_block, groups] = 0
        for step in columns:                  # unrolled by k_unroll, prefetched
            for digit in digits of a vector:
                w = decode(weight[block, step, group], digit)          # groups registers
                sums[t, group] += dot(w, q[t, 4 columns])              # token_block x groups
        y[tokens, block] = scaled(sums)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import quantize_tokens
from wattune.schedules.cpu.ternary_gemm.decode import Digits
from wattune.schedules.cpu.ternary_gemm.layout import QUAD, VECTOR, VectorLayout
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.cpu.vector import Registers
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any
I32 = "int32x16"


@dataclass(frozen=True)
class Arithmetic:
    """How codes meet activations in registers of ``lanes`` 32-bit lanes.

    ``dot(total, codes, q)`` adds products of bytes. Totals are int32, or, where ``widen`` is
    given, int16: then ``widen(total, part)`` adds them to int32 lanes, soon enough.
    """

    lanes: int
    dot: Callable[[Expr, Expr, Expr], Expr]
    widen: Callable[[Expr, Expr], Expr] | None = None


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: TernaryGemm
    threads: int
    weight: VectorLayout
    workspace: Workspace
    arithmetic: Arithmetic
    digits: Digits
    k_unroll: int
    prefetch: int
    token_block: int
    grain: int
    row_groups: int

    def emit(self, tensors: Tensors) -> None:
        """Quantise all tokens, then multiply block by block."""
        tokens = tensors.sizes["tokens"]
        columns = self.weight.padded_columns
        quantize_tokens(self.problem, self.workspace, columns, self.threads, tensors)
        parallel = T.parallel if self.threads > 1 else T.serial
        tasks = -(-self.weight.blocks // self.grain)
        with parallel(tasks) as task, T.serial(self.grain) as inner:
            block = task * self.grain + inner
            if self.weight.blocks % self.grain:
                with T.If(block < self.weight.blocks), T.Then():
                    self._block(tensors, tokens, block)
            else:
                self._block(tensors, tokens, block)

    def _block(self, tensors: Tensors, tokens: Expr, block: Expr) -> None:
        """Multiply one block of rows with all tokens."""
        count = T.cast((tokens + self.token_block - 1) // self.token_block, "int32")
        parts = self.weight.groups // self.row_groups
        with T.serial(parts) as part, T.serial(count) as at:
            first = at * self.token_block
            group = part * self.row_groups
            sums = self._zeros("int32")

            def steps(totals: Registers, start: Expr, length: int) -> None:
                self._steps(tensors, totals, block, group, first, start, length)

            if self.arithmetic.widen is None:
                steps(sums, 0, self.weight.steps)
            else:
                chunk = self.digits.steps_in_int16()
                whole = self.weight.steps // chunk
                with T.serial(whole) as i:
                    self._widened(sums, steps, i * chunk, chunk)
                if rest := self.weight.steps % chunk:
                    self._widened(sums, steps, whole * chunk, rest)
            self._store(tensors, sums, block, group, tokens, first)

    def _steps(
        self,
        tensors: Tensors,
        totals: Registers,
        block: Expr,
        group: Expr,
        first: Expr,
        start: Expr,
        length: int,
    ) -> None:
        """Add ``length`` vectors of every group from a step on."""
        with T.serial(length // self.k_unroll) as step:
            for k in range(self.k_unroll):
                self._step(tensors, totals, block, group, start + step * self.k_unroll + k, first)
        for k in range(length // self.k_unroll * self.k_unroll, length):
            self._step(tensors, totals, block, group, start + k, first)

    def _widened(
        self,
        sums: Registers,
        steps: Callable[[Registers, Expr, int], None],
        start: Expr,
        length: int,
    ) -> None:
        """Add a few vectors in int16, then their totals to the int32 sums."""
        lanes = self.arithmetic.lanes
        parts = self._zeros("int16")
        steps(parts, start, length)
        assert self.arithmetic.widen is not None
        for at in range(0, self._registers() * vector.LANES, lanes):
            total = sums.load(at, f"int32x{lanes}")
            part = parts.load(2 * at, f"int16x{2 * lanes}")
            sums.store(at, self.arithmetic.widen(total, part))

    def _registers(self) -> int:
        """Count the accumulators of 16 rows."""
        return self.token_block * self.row_groups * self.digits.accumulators

    def _zeros(self, dtype: str) -> Registers:
        """Return all accumulators, zero."""
        scale = {"int32": 1, "int16": 2}[dtype]
        count = self._registers() * vector.LANES * scale
        totals = Registers(self._registers(), dtype)
        lanes = self.arithmetic.lanes * scale
        zero = {"int32": T.int32, "int16": T.int16}[dtype](0)
        for at in range(0, count, lanes):
            totals.store(at, vector.splat(zero, lanes))
        return totals

    def _slot(self, token: int, group: int, chain: int) -> int:
        """Return the first 32-bit lane of an accumulator."""
        accumulators = self.digits.accumulators
        return ((token * self.row_groups + group) * accumulators + chain) * vector.LANES

    def _step(
        self, tensors: Tensors, totals: Registers, block: Expr, group: Expr, step: Expr, first: Expr
    ) -> None:
        """Add one vector of every group times the columns it covers."""
        weight = self.weight
        work = tensors["workspace"]
        at = block * weight.block_bytes + (step * weight.groups + group) * VECTOR
        lanes = self.arithmetic.lanes
        # A vector of 16 rows fills one register, or two of half its lanes.
        halves = range(0, vector.LANES, lanes)
        digits: dict[tuple[int, int], list[Expr]] = {}
        for g in range(self.row_groups):
            if self.prefetch:
                vector.prefetch(tensors["weight"], at + g * VECTOR + self.prefetch)
            for half in halves:
                byte = at + g * VECTOR + half * QUAD
                code = vector.load_bytes(tensors["weight"], byte, lanes * QUAD)
                digits[g, half] = self.digits.decode(code)
        for d in range(weight.digits):
            for t in range(self.token_block):
                row = (first + t) * self.workspace.stride
                q = vector.splat_quad(work, row + step * weight.columns + d * QUAD, lanes)
                for g in range(self.row_groups):
                    for half in halves:
                        slot = self._slot(t, g, self.digits.chain[d]) + half
                        codes = T.reinterpret(f"int8x{lanes * QUAD}", digits[g, half][d])
                        self._add(totals, slot, codes, q)

    def _add(self, totals: Registers, slot: int, codes: Expr, q: Expr) -> None:
        """Add products to the accumulator at a 32-bit lane."""
        at, kind = slot, f"int32x{self.arithmetic.lanes}"
        if self.arithmetic.widen is not None:
            at, kind = 2 * slot, f"int16x{2 * self.arithmetic.lanes}"
        totals.store(at, self.arithmetic.dot(totals.load(at, kind), codes, q))

    def _store(
        self, tensors: Tensors, sums: Registers, block: Expr, group: Expr, tokens: Expr, first: Expr
    ) -> None:
        """Combine the accumulators and store the rows of the tokens that exist."""
        storer = Storer(self.problem, self.workspace)
        for t in range(self.token_block):
            with T.If(first + t < tokens), T.Then():
                for g in range(self.row_groups):
                    storer.emit(
                        self._total(sums, t, g),
                        tensors["workspace"],
                        tensors.get("weight_scale"),
                        tensors["y"],
                        first + t,
                        (block * self.weight.groups + group + g) * vector.LANES,
                    )

    def _total(self, sums: Registers, token: int, group: int) -> Expr:
        """Add the accumulators of one token and group; digits left in place are shifted here."""
        total = sums.load(self._slot(token, group, 0), I32)
        for chain in range(1, self.digits.accumulators):
            part = sums.load(self._slot(token, group, chain), I32)
            if shift := self.digits.shift[chain]:
                part = T.shift_right(part, vector.splat(T.int32(shift)))
            total = total + part
        return total
