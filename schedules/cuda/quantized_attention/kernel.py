"""The main kernel of quantised attention: a block takes a split of a request's KV head.

A split's share of the keys are packed tiles, residual tiles or both: they cost about the same.

    for tile of codes of the warp:     s = codes q^T;  p = softmax so far;  acc += codes^T p
    for residual tile of the warp:     the same with rows of 16-bit floats
    merge the warps;  out, or (m, l, acc) to the workspace
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import Place as BlockPlace
from wattune.schedules.cuda.attention.place import chunks_of
from wattune.schedules.cuda.attention.splits import Splits
from wattune.schedules.cuda.attention.teams import Teams
from wattune.schedules.cuda.attention.work import Work
from wattune.schedules.cuda.kernel import Block, Shared
from wattune.schedules.cuda.quantized_attention.finish import spread
from wattune.schedules.cuda.quantized_attention.memory import Memory
from wattune.schedules.cuda.quantized_attention.packed import Packed
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cuda.quantized_attention.residual import Residual
from wattune.schedules.cuda.quantized_attention.scores import Scores
from wattune.schedules.cuda.quantized_attention.softmax import State
from wattune.schedules.cuda.quantized_attention.tiles import DenseTiles, ListedTiles, Request

Expr = Any


@dataclass(frozen=True)
class Attend:
    """Emits the kernel of a plan."""

    plan: QuantizedPlan

    def emit(self, block: Block) -> None:
        """Emit it; blocks of splits that a request does not have end at once."""
        plan = self.plan
        shared = Shared.of(plan.shared.bytes)
        if plan.dependent and plan.splits > 1 and plan.combine == "kernel":
            ptx.let_next_start()
        if plan.grid:
            self._pieces(block, shared)
            return
        place = BlockPlace.of(plan, block)
        chunks = self._chunks(place)
        if plan.listed or plan.splits == 1:
            self._work(place, shared, chunks)
            return
        with T.If(place.split < chunks), T.Then():
            self._work(place, shared, chunks)

    def _pieces(self, block: Block, shared: Shared) -> None:
        """Emit the work of a block that takes one split after the other."""
        work = Work(self.plan, block)
        with T.serial(work.count) as turn:
            place = work.place(turn)
            self._work(place, shared, self._chunks(place))
            ptx.block_barrier()

    def _chunks(self, place: BlockPlace[QuantizedPlan]) -> Expr:
        """Return into how many splits the item's keys are cut."""
        plan = self.plan
        if plan.listed or plan.splits == 1:
            return T.int32(plan.splits)
        return chunks_of(plan, place.first, place.end)[1]

    def _work(self, block_place: BlockPlace[QuantizedPlan], shared: Shared, chunks: Expr) -> None:
        """Emit the work on a split."""
        plan, block = self.plan, block_place.block
        place = Place.of(plan, block_place)
        memory = Memory.of(plan, place, shared)
        request = Request.of(plan, block_place.item.length, block_place.first)
        scores = Scores.of(plan, place, request)
        tiles = (ListedTiles if plan.listed else DenseTiles)(plan, place, block, request)
        state = State.begin(plan)

        packed = tiles.count()
        first_row, rows = request.residual()
        begin, end = self._share(block_place.split, chunks, packed + rows)
        first = T.bind(begin + place.warp)
        count = _count(first, T.min(end, packed), plan.teams)
        Packed.of(plan, place, block, memory, scores).emit(tiles, first, count, state)
        state.end_packed()

        first = T.bind(T.max(begin - packed, 0) + place.warp)
        count = _count(first, end - packed, plan.teams)
        residual = Residual(plan, place, block, memory, request, scores)
        residual.emit(T.bind(first_row + first), count, state)

        ptx.block_barrier()
        teams = Teams(plan, block_place, shared)
        spread(plan, place, state, teams)
        ptx.block_barrier()
        teams.gather(chunks)
        if plan.splits > 1 and plan.combine == "last":
            Splits(plan, block, block_place.item).last(block_place, shared, chunks)

    def _share(self, split: Expr, chunks: Expr, total: Expr) -> tuple[Expr, Expr]:
        """Return which places are the split's: equal shares."""
        total = ptx.hold(total)
        if self.plan.splits == 1:
            return T.int32(0), total
        share = ptx.hold(T.truncdiv(total + chunks - 1, chunks))
        begin = ptx.hold(T.min(split * share, total))
        return begin, ptx.hold(T.min(begin + share, total))


def _count(first: Expr, end: Expr, step: int) -> Expr:
    """Return how many numbers from ``first`` on, ``step`` apart, are below ``end``."""
    return ptx.hold(T.truncdiv(T.max(end - first, 0) + (step - 1), step))
