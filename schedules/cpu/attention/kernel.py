"""The loop nest of attention to rows of a cache: what `Walk` does for each chunk of an item.

for tile in the chunk's keys:                         # its row table is built one tile ahead
    for rows in the item's query rows:
        s = q k^T;  mask;  p = softmax so far;  acc = acc * shrink + p v
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.memory import Memory, Region, flat
from wattune.schedules.cpu.attention.plan import Fold, Plan, Scratch
from wattune.schedules.cpu.attention.prefetch import Operand
from wattune.schedules.cpu.attention.scores import BesideScores, Scores
from wattune.schedules.cpu.attention.softmax import Mask, Softmax
from wattune.schedules.cpu.attention.streams import Stream, Tiles
from wattune.schedules.cpu.attention.values import BesideSums, Values
from wattune.schedules.cpu.attention.walk import Walk
from wattune.schedules.program import Tensors

Expr = Any


@dataclass(frozen=True)
class Own:
    """A thread's scratch."""

    query: Region
    sums: Region
    state: Region
    totals: Region
    limits: Region
    scores: Region
    weights: Region
    factors: Region
    tiles: Tiles

    @classmethod
    def of(cls, memory: Memory, thread: Expr, block: int) -> Own:
        """Return the areas of a thread."""
        names = ("query", "sums", "state", "totals", "limits", "scores", "weights", "factors")
        areas = {name: memory.own(name, thread) for name in names}
        flags = [Region(vector.array(2, "int32"), 0, "int32") for _ in range(2)]
        tables = (memory.own("table", thread), memory.own("positions", thread))
        return cls(**areas, tiles=Tiles(block, *tables, *flags))


class Kernel(Walk[Own]):
    """Emits one kernel of attention to rows of a cache."""

    stream: Stream
    joins = False

    def __init__(
        self,
        plan: Plan,
        scratch: Scratch,
        scores: Scores,
        values: Values,
        stream: type[Stream],
    ) -> None:
        """Keep the parts; ``stream`` makes what names the keys."""
        super().__init__(plan, scratch, values)
        self.scores = scores
        self.make_stream = stream

    def open(self, tensors: Tensors) -> None:
        """Declare views of the tensors and of the workspace."""
        self.memory = Memory(tensors, self.scratch)
        self.stream = self.make_stream(self.plan, tensors, self.memory.shared("counts"))
        self.keys, self.cached_values = flat(tensors["k_cache"]), flat(tensors["v_cache"])

    def own(self, thread: Expr) -> Own:
        """Return a thread's scratch."""
        return Own.of(self.memory, thread, self.plan.block)

    def emit(self, tensors: Tensors) -> None:
        """Emit the kernel."""
        if "dot" in (self.plan.scores, self.plan.values):
            with vector.bf16_functions():
                super().emit(tensors)
        else:
            super().emit(tensors)

    def tiles(self, own: Own, item: Item, first: Expr, end: Expr) -> None:
        """Emit the tiles of a chunk, each table one tile ahead."""
        self.stream.begin(item, first)
        self.stream.build(item, first, own.tiles)
        with T.serial(end - first) as i:
            own.tiles.advance()
            with T.If(first + i + 1 < end), T.Then():
                self.stream.build(item, first + i + 1, own.tiles)
            self._tile(own)

    def start(self, own: Own, item: Item) -> None:
        """Emit the conversion of an item's queries, zero sums, and the limits of its rows."""
        plan, problem = self.plan, self.plan.problem
        lanes, heads = plan.lanes, problem.query_heads
        with T.serial(plan.item_rows) as row:
            token = T.cast(item.request, "int64") * problem.query_tokens + item.part
            at = (token + row // problem.group) * heads + item.head * problem.group
            at = T.bind((at + row % problem.group) * problem.head_dim)
            self.scores.prepare(self.query, at, own.query, row)
        with T.serial(plan.item_rows * self.values.total_lanes // lanes) as i:
            own.sums.store(i * lanes, math.real(0.0, lanes))
        for fold, start, count in plan.folds:
            with T.serial(count) as group:
                at = T.bind((start // plan.rows + group) * lanes)
                own.state.store(2 * at, math.real(math.NOTHING, lanes))
                own.state.store(2 * at + lanes, math.real(0.0, lanes))
                with T.serial(lanes) as lane:
                    row = start + group * fold.rows + lane // fold.keys
                    token = T.min(row // problem.group, plan.item_tokens - 1) + item.part
                    own.limits.store(at + lane, item.length - problem.query_tokens + token + 1)

    def _tile(self, own: Own) -> None:
        """Emit one tile: every group of rows against its keys and values."""
        plan = self.plan
        ahead = own.tiles.rows.part(min(plan.prefetch, plan.block)) if plan.prefetch else None
        for fold, start, groups in plan.folds:
            # The first group of rows asks for all that is ahead, the others for nothing.
            first = 1 if start == 0 and (ahead is not None or self.joins) else 0
            if first:
                self._group(own, fold, T.int32(0), ahead, first=True)
            if groups > first:
                with T.serial(groups - first) as group:
                    self._group(own, fold, T.bind(start + (group + first) * fold.rows), None)

    def _group(
        self, own: Own, fold: Fold, row: Expr, ahead: Region | None, first: bool = False
    ) -> None:
        """Emit a group of rows, from ``row`` on, against a tile."""
        plan, tiles = self.plan, own.tiles
        count, masked = (T.bind(flag.load(0)) for flag in (tiles.counts, tiles.masked))
        quantum = plan.quantum(fold) * fold.keys
        quanta = T.bind((count + (quantum - 1)) // quantum)
        at = T.bind(row // plan.rows * plan.lanes)
        problem = plan.problem
        keys = Operand(self.keys, tiles.rows, ahead, problem.head_dim)
        values = Operand(self.cached_values, tiles.rows, ahead, problem.value_dim)
        besides = self.besides(keys, values) if first else (None, None)
        self.scores.emit(fold, keys, own.query, row, own.scores, quanta, besides[0])
        self._mask(fold, own, tiles.positions, own.limits.part(at), masked, quanta)
        weights = own.scores if self.values.in_place else own.weights
        keep = partial(self.values.keep, weights)
        state = own.state.part(2 * at)
        Softmax(plan, fold).emit(own.scores, state, own.factors, quanta, keep)
        sums = own.sums.part(row * self.values.total_lanes)
        self.values.emit(fold, values, weights, own.factors, sums, quanta, besides[1])

    def besides(
        self, keys: Operand, values: Operand
    ) -> tuple[BesideScores | None, BesideSums | None]:
        """Return what a tile's first group of rows does beside its scores, and its sums: nothing.

        A kernel that returns something sets ``joins``.
        """
        return None, None

    def _mask(
        self, fold: Fold, own: Own, positions: Region, limits: Region, masked: Expr, quanta: Expr
    ) -> None:
        mask = Mask(self.plan, fold)
        if self.plan.problem.soft_cap:
            mask.soften(own.scores, quanta)
        with T.If(masked != 0), T.Then():
            mask.hide(own.scores, positions, limits, quanta)
