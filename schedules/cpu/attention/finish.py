"""From sums to outputs: the last phase of an item, and the merge of its chunks.

out = acc / (l + 2^(sink - m));  lse = ln(2) (m + log2 l)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.attention.values import Values
from wattune.schedules.program import Tensors

Expr = Any

# A sink of infinity takes all weight: beyond this it would meet itself as inf - inf.
_MOST = 3e38


@dataclass(frozen=True)
class Finish:
    """Emits outputs of an item's rows."""

    plan: Plan
    tensors: Tensors
    values: Values

    def totals(self, state: Region, totals: Region) -> None:
        """Emit each row's maximum and sum, gathered from the vectors of its group."""
        lanes = self.plan.lanes
        for fold, start, count in self.plan.folds:
            with T.serial(count) as group:
                base = T.bind((start // self.plan.rows + group) * (2 * lanes))
                for r in range(fold.rows):
                    row = start + group * fold.rows + r
                    first = base + r * fold.keys
                    parts = [T.bind(state.load(first + lanes + k)) for k in range(fold.keys)]
                    while len(parts) > 1:
                        pairs = zip(parts[::2], parts[1::2], strict=True)
                        parts = [T.bind(a + b) for a, b in pairs]
                    totals.store(row * 2, state.load(first))
                    totals.store(row * 2 + 1, parts[0])

    def outputs(self, item: Item, sums: Region, totals: Region) -> None:
        """Emit out and lse of every row."""
        problem = self.plan.problem
        with T.serial(self.plan.item_rows) as row:
            token = T.bind(row // problem.group + item.part)
            head = T.bind(item.head * problem.group + row % problem.group)
            m = T.bind(totals.load(row * 2))
            total = T.bind(totals.load(row * 2 + 1))
            factor = T.bind(self._factor(m, total, head))
            self._store(item.request, token, head, sums, row, factor)
            if problem.return_lse:
                # The logarithm of an empty row's 0 is not used, only must not be undefined.
                some = T.bind(T.max(total, T.float32(1e-30)))
                lse = T.bind((m + math.log2(some, 1)) * T.float32(math.LN_2))
                empty = total <= T.float32(0)
                found = T.Select(empty, T.float32(float("-inf")), lse)
                vector.store(self.tensors["lse"], [item.request, token, head], found)

    def _factor(self, m: Expr, total: Expr, head: Expr) -> Expr:
        """Return what a row's sums are multiplied by; 0 where nothing was seen."""
        least = T.float32(1e-30)
        if not self.plan.problem.sinks:
            found = T.float32(1) / T.max(total, least)
        else:
            sink = T.bind(self.tensors["sinks"][head] * T.float32(math.LOG2_E))
            sink = T.bind(T.min(sink, T.float32(_MOST)))
            top = T.bind(T.max(m, sink))
            weight = math.exp2(T.bind(m - top), 1)
            both = T.bind(total * weight + math.exp2(T.bind(sink - top), 1))
            found = weight / T.max(both, least)
        return T.Select(total <= T.float32(0), T.float32(0), found)

    def _store(
        self, request: Expr, token: Expr, head: Expr, sums: Region, row: Expr, factor: Expr
    ) -> None:
        """Emit one row of the output."""
        lanes, out = self.plan.lanes, self.tensors["out"]
        scale = T.bind(vector.splat(factor, lanes)) if lanes > 1 else factor
        base = T.bind(row * self.values.total_lanes)
        for group, start in enumerate(self.values.starts):
            for i, part in enumerate(self.values.natural(sums, base, group)):
                value = T.cast(T.bind(part * scale), math.kind(self.plan.problem.dtype, lanes))
                vector.store(out, [request, token, head, start + i * lanes], value)

    def keep(self, sums: Region, totals: Region, chunk_sums: Region, chunk_totals: Region) -> None:
        """Emit the copy of a chunk's state to where the merge finds it."""
        lanes, count = self.plan.lanes, self.plan.item_rows * self.values.total_lanes
        with T.serial(count // lanes) as i:
            chunk_sums.store(i * lanes, sums.load(i * lanes, lanes))
        with T.serial(2 * self.plan.item_rows) as i:
            chunk_totals.store(i, totals.load(i))

    def merge(
        self, chunks: Expr, sums: Callable[[Expr], Region], totals: Callable[[Expr], Region]
    ) -> None:
        """Emit the merge of all chunks into the first, in order."""
        into_sums, into_totals = sums(T.int32(0)), totals(T.int32(0))
        with T.serial(chunks - 1) as before:
            more_sums, more_totals = sums(before + 1), totals(before + 1)
            with T.serial(self.plan.item_rows) as row:
                m = [T.bind(part.load(row * 2)) for part in (into_totals, more_totals)]
                total = [T.bind(part.load(row * 2 + 1)) for part in (into_totals, more_totals)]
                top = T.bind(T.max(*m))
                shrink = [math.exp2(T.bind(part - top), 1) for part in m]
                into_totals.store(row * 2, top)
                into_totals.store(row * 2 + 1, total[0] * shrink[0] + total[1] * shrink[1])
                self._add(row, into_sums, more_sums, shrink)

    def _add(self, row: Expr, into: Region, more: Region, shrink: list[Expr]) -> None:
        """Emit into = into * shrink[0] + more * shrink[1] for a row's sums."""
        lanes, width = self.plan.lanes, self.values.total_lanes
        first, second = (
            T.bind(vector.splat(part, lanes)) if lanes > 1 else part for part in shrink
        )
        with T.serial(width // lanes) as i:
            at = T.bind(row * width + i * lanes)
            added = more.load(at, lanes) * second
            into.store(at, vector.multiply_add(into.load(at, lanes), first, added))
