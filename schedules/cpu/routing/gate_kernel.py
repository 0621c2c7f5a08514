"""The gate's product: tiles of experts times groups of tokens, sums in registers.

    for block of tokens:
        rows = the block's tokens as float32
        for part of the columns, tile of this thread's experts, group of the tokens:
            sums[token, expert] += rows[token] * weight[expert]        # lane by lane
        logits = sums of the lanes, halves with halves

A weight is read once for each block, one after the other as they lie; a part of the tokens stays in
the first cache. A logit's lanes are summed in the order of the columns, and then all in one order:
what the bits of a logit depend on is ``lanes`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import Lanes
from wattune.schedules.cpu.routing.gate_plan import GatePlan
from wattune.schedules.cpu.routing.loads import Loads
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class GateKernel:
    """Emits the product; ``rows`` and ``weight`` load fp32 vectors, ``logits`` is flat."""

    plan: GatePlan
    rows: Loads
    weight: Loads
    workspace: Buffer
    logits: Buffer

    def emit(self, tokens: Expr) -> None:
        """Give each thread a range of tiles; every one makes its own copy of the tokens."""
        threads, tiles, count = self.plan.threads, self.plan.tiles, T.cast(tokens, "int32")
        if threads == 1:
            self._experts(T.int32(0), T.int32(0), T.int32(tiles), T.bind(count))
            return
        with T.parallel(threads) as worker:
            first, end = (T.bind(T.truncdiv((worker + i) * tiles, threads)) for i in range(2))
            self._experts(worker, first, end, T.bind(count))

    def _experts(self, worker: Expr, first: Expr, end: Expr, tokens: Expr) -> None:
        """Emit the logits of a range of tiles."""
        plan = self.plan
        base = T.bind(T.cast(worker, "int64") * (plan.areas.bytes // 4))
        with T.serial(ceildiv(tokens, plan.block)) as block:
            start = T.bind(block * plan.block)
            count = T.bind(T.min(tokens - start, plan.block))
            groups = T.bind(ceildiv(count, plan.tokens))
            with T.serial(groups * plan.tokens) as i:
                self._widen(base, i, start, count)
            Block(self, base, start, count, groups).emit(first, end)

    def _widen(self, base: Expr, i: Expr, start: Expr, count: Expr) -> None:
        """Write token ``i`` of a block as float32; beyond the last one, and its columns, zeros."""
        plan, lanes = self.plan, Lanes(self.plan.lanes)
        group, place = T.truncdiv(i, plan.tokens), T.truncmod(i, plan.tokens)
        to = T.bind(base + T.cast(group, "int64") * plan.group_values + place * plan.lanes)
        hidden, step = plan.problem.hidden_size, plan.tokens * plan.lanes
        whole = hidden // plan.lanes
        with T.If(i < count):
            with T.Then():
                row = T.bind(start + i)
                at = T.bind(T.cast(row, "int64") * hidden)
                with T.serial(whole) as j:
                    values = self.rows.vector(at + j * plan.lanes)
                    vector.store(self.workspace, [to + j * step], values)
                if whole < plan.steps:
                    inside = lanes.below(T.int32(hidden - whole * plan.lanes))
                    last = T.Select(inside, self.rows.load(row, whole), lanes.each(0.0))
                    vector.store(self.workspace, [to + whole * step], last)
            with T.Else(), T.serial(plan.steps) as j:
                vector.store(self.workspace, [to + j * step], lanes.each(0.0))


@dataclass(frozen=True)
class Block:
    """Emits the product of a block of tokens: ``count`` from ``start`` on, in ``groups``."""

    kernel: GateKernel
    base: Expr
    start: Expr
    count: Expr
    groups: Expr

    @property
    def plan(self) -> GatePlan:
        """Return the sizes."""
        return self.kernel.plan

    @property
    def lanes(self) -> Lanes:
        """Return the vectors of columns."""
        return Lanes(self.plan.lanes)

    def emit(self, first: Expr, end: Expr) -> None:
        """Multiply by a range of tiles: by whole rows, or by a part of all before the next part."""
        plan = self.plan
        if plan.parts == 1:
            with T.serial(end - first) as i, T.serial(self.groups) as group:
                tile = T.bind(first + i)
                sums = self._zeros()
                self._multiply(sums, tile, group, T.int32(0), T.int32(plan.steps))
                self._finish(tile, group, self._load(sums))
            return
        with T.serial(plan.parts) as part:
            start = T.bind(part * plan.depth)
            steps = T.bind(T.min(T.int32(plan.steps) - start, plan.depth))
            with T.serial(end - first) as i, T.serial(self.groups) as group:
                tile = T.bind(first + i)
                self._add(tile, group, part, start, steps)
        with T.serial(end - first) as i, T.serial(self.groups) as group:
            tile = T.bind(first + i)
            at, vectors = self._sums_at(tile, group), plan.tokens * plan.rows
            totals = [T.bind(self._get(at + i * plan.lanes)) for i in range(vectors)]
            self._finish(tile, group, totals)

    def _sums_at(self, tile: Expr, group: Expr) -> Expr:
        """Return where the sums of a tile and a group lie."""
        number = T.cast(tile * self.plan.groups + group, "int64")
        start = self.base + self.plan.areas.starts["sums"] // 4
        return T.bind(start + number * self.plan.sums)

    def _add(self, tile: Expr, group: Expr, part: Expr, start: Expr, steps: Expr) -> None:
        """Add a part's products to the sums in the workspace, which the first part begins."""
        at, sums = self._sums_at(tile, group), self._zeros()
        with T.If(part > 0), T.Then():
            for i in range(len(sums.buffers)):
                sums.store(i * sums.lanes, self._get(at + i * self.plan.lanes))
        self._multiply(sums, tile, group, start, steps)
        for i, total in enumerate(self._load(sums)):
            self._put(at + i * self.plan.lanes, total)

    def _get(self, at: Expr) -> Expr:
        return self.kernel.workspace.vload([at], self.lanes.f32)

    def _put(self, at: Expr, value: Expr) -> None:
        vector.store(self.kernel.workspace, [at], value)

    def _zeros(self) -> vector.Registers:
        count = self.plan.tokens * self.plan.rows
        sums = vector.Registers(count, "float32")
        for i in range(count):
            sums.store(i * sums.lanes, self.lanes.each(0.0))
        return sums

    def _load(self, sums: vector.Registers) -> list[Expr]:
        return [T.bind(sums.load(i * sums.lanes, self.lanes.f32)) for i in range(len(sums.buffers))]

    def _multiply(
        self, sums: vector.Registers, tile: Expr, group: Expr, start: Expr, steps: Expr
    ) -> None:
        """Add the products of a part's steps to a group's sums."""
        plan = self.plan
        before = T.cast(start, "int64") * plan.tiles + T.cast(tile, "int64") * steps
        weights = T.bind(before * plan.step_values)
        tokens = self.base + T.cast(group, "int64") * plan.group_values
        tokens = T.bind(tokens + start * (plan.tokens * plan.lanes))
        whole = T.bind(T.truncdiv(steps, plan.unroll))
        with T.serial(whole) as i:
            for more in range(plan.unroll):
                self._step(sums, weights, tokens, T.bind(i * plan.unroll + more))
        if plan.unroll > 1:
            with T.serial(steps - whole * plan.unroll) as i:
                self._step(sums, weights, tokens, T.bind(whole * plan.unroll + i))

    def _step(self, sums: vector.Registers, weights: Expr, tokens: Expr, step: Expr) -> None:
        """Add the products of one vector of each expert and token."""
        plan, kernel = self.plan, self.kernel
        at, x_at = weights + step * plan.step_values, tokens + step * (plan.tokens * plan.lanes)
        self._prefetch(at)
        loaded = [T.bind(kernel.weight.vector(at + i * plan.lanes)) for i in range(plan.rows)]
        for token in range(plan.tokens):
            x = T.bind(self._get(x_at + token * plan.lanes))
            for i, weight in enumerate(loaded):
                place = (token * plan.rows + i) * sums.lanes
                total = sums.load(place, self.lanes.f32)
                sums.store(place, vector.multiply_add(x, weight, total))

    def _prefetch(self, at: Expr) -> None:
        """Ask for the weights that come so many bytes later."""
        if not self.plan.prefetch:
            return
        size = int(str(self.kernel.weight.buffer.dtype).lstrip("uintfloa")) // 8
        ahead = at + self.plan.prefetch // size
        for line in range(0, self.plan.rows * self.plan.lanes, vector.BYTES // size):
            vector.prefetch(self.kernel.weight.buffer, ahead + line)

    def _finish(self, tile: Expr, group: Expr, sums: list[Expr]) -> None:
        """Write the logits of a tile and a group."""
        plan = self.plan
        first, experts = T.bind(tile * plan.rows), plan.problem.num_experts
        for token in range(plan.tokens):
            place = T.bind(group * plan.tokens + token)
            with _where(plan.tokens > 1, place < self.count):
                at = T.bind(T.cast(self.start + place, "int64") * experts)
                for i in range(plan.rows):
                    total = self.lanes.total_real(sums[token * plan.rows + i])
                    with _where(experts % plan.rows != 0, first + i < experts):
                        vector.store(self.kernel.logits, [at + first + i], total)


@contextmanager
def _where(in_question: bool, condition: Expr) -> Iterator[None]:
    """Emit what follows under a condition, where it is in question at all."""
    if not in_question:
        yield
        return
    with T.If(condition), T.Then():
        yield
