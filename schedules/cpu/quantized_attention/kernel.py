"""The loop nest of quantised attention: the walk of all attention kernels, with packed tiles.

for tile in the chunk's tiles:
    s = q k^T  of packed keys, or of the residual's rows
    for row: mask; p = softmax so far; numbers of p scale
    acc = acc * shrink + p v  of packed values, or of the residual's rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Memory, Region, flat
from wattune.schedules.cpu.attention.plan import Fold
from wattune.schedules.cpu.attention.softmax import Mask, Softmax
from wattune.schedules.cpu.attention.values import FmaValues
from wattune.schedules.cpu.attention.walk import Walk
from wattune.schedules.cpu.quantized_attention.keys import Keys, Queries
from wattune.schedules.cpu.quantized_attention.packed import Ahead, Codes, PackedCache
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.residual import Residual, Rows
from wattune.schedules.cpu.quantized_attention.tiles import (
    DenseTiles,
    ListedTiles,
    Tile,
    TileStream,
)
from wattune.schedules.cpu.quantized_attention.values import PackedValues, Weights
from wattune.schedules.cpu.vector import LANES
from wattune.schedules.program import Tensors

Expr = Any


class QuantizedMemory(Memory):
    """The workspace of quantised attention."""

    def own(self, name: str, thread: Expr, kind: str = "float32") -> Region:
        """Return a thread's own area, of 4-byte elements."""
        start = (self.scratch.shared.bytes + self.scratch.own.starts[name]) // 4
        stride = self.scratch.stride // 4
        return Region(self.views[kind], T.bind(T.cast(thread, "int64") * stride + start), kind)


@dataclass(frozen=True)
class QuantizedOwn:
    """A thread's scratch."""

    queries: Queries
    weights: Weights
    sums: Region
    state: Region
    totals: Region
    params: Region
    group: Region

    @classmethod
    def of(cls, memory: QuantizedMemory, thread: Expr, dtype: str) -> QuantizedOwn:
        """Return the areas of a thread; numbers are of ``dtype``."""

        def own(name: str, kind: str = "float32") -> Region:
            return memory.own(name, thread, kind)

        return cls(
            Queries(own("query"), own("numbers", dtype), own("units")),
            Weights(
                own("scores"),
                own("weights", dtype),
                own("weight_units"),
                own("factors"),
                own("zeros"),
            ),
            own("sums"),
            own("state"),
            own("totals"),
            own("params"),
            Region(vector.array(1, "int32"), 0, "int32"),
        )


class QuantizedKernel(Walk[QuantizedOwn]):
    """Emits one kernel."""

    memory: QuantizedMemory
    stream: TileStream

    def __init__(self, plan: QuantizedPlan) -> None:
        """Choose the parts."""
        base = plan.base
        values = FmaValues(base)
        # Sums lie in the order of channels.
        values.loader = Loader(base.problem.dtype, base.lanes, False)
        super().__init__(base, plan.scratch(), values)
        self.quantized = plan
        self.packed_keys, self.packed_values = Keys(plan), PackedValues(plan)
        self.residual = Residual(plan)
        self.fold = Fold(1, base.lanes)

    def open(self, tensors: Tensors) -> None:
        """Declare views of the tensors."""
        self.memory = QuantizedMemory(tensors, self.scratch)
        self.packed = [PackedCache(self.quantized, tensors, which) for which in "kv"]
        self.rest = [flat(tensors[f"{which}_residual"]) for which in "kv"]
        listed = self.quantized.problem.block_size
        self.stream = (ListedTiles if listed else DenseTiles)(
            self.quantized, tensors, self.memory.shared("counts")
        )

    def own(self, thread: Expr) -> QuantizedOwn:
        """Return a thread's scratch."""
        return QuantizedOwn.of(self.memory, thread, self.quantized.product.dtype)

    def start(self, own: QuantizedOwn, item: Item) -> None:
        """Emit the conversion of an item's queries, and zero sums."""
        plan, problem = self.quantized, self.quantized.problem
        lanes = self.plan.lanes
        with T.serial(self.plan.item_rows) as row:
            token = T.cast(item.request, "int64") * problem.query_tokens + row // problem.group
            at = token * problem.query_heads + item.head * problem.group + row % problem.group
            at = T.bind(at * problem.head_dim)
            self.residual.query(self.query, at, own.queries.query, row)
            if not plan.per_channel:
                self.packed_keys.numbers(own.queries, row, None)
            own.state.store(row * (2 * lanes), math.real(math.NOTHING, lanes))
            own.state.store(row * (2 * lanes) + lanes, math.real(0.0, lanes))
        zero = math.real(0.0, LANES)
        for area, count in (
            (own.sums, problem.value_dim // LANES),
            (own.weights.zeros, plan.value_groups),
        ):
            with T.serial(self.plan.item_rows * count) as i:
                area.store(i * LANES, zero)
        own.group.store(0, T.int32(-1))

    def tiles(self, own: QuantizedOwn, item: Item, first: Expr, end: Expr) -> None:
        """Emit the tiles of a chunk."""
        problem = self.quantized.problem
        packed = T.bind(item.length // problem.block_tokens * problem.block_tokens)
        self.stream.begin(item, first, end)
        with T.serial(end - first) as i:
            tile = self.stream.tile(item, first + i)
            start = T.bind(tile.number * self.quantized.tile)
            # While keys are multiplied, values are on their way, and the other way round.
            plan = self.quantized
            place = first + i
            later = T.bind(self.stream.ahead(item, place, plan.ahead))
            sooner = T.bind(self.stream.ahead(item, place, max(0, plan.ahead - 1)))
            keys, values = (cache.tile(item, start, later) for cache in self.packed)
            next_keys = self.packed[0].ahead(item, later, plan.value_points)
            next_values = self.packed[1].ahead(item, sooner, plan.score_points)
            rest = self._rest(item, tile, start, packed)
            # One softmax for both kinds of tiles: it is what takes longest to compile.
            with T.If(start < packed):
                with T.Then():
                    self._packed_scores(own, keys, start, next_values)
                with T.Else():
                    self.residual.scores(rest, own.queries, own.weights.scores)
            self._softmax(own, item, tile, start, next_values)
            with T.If(start < packed):
                with T.Then():
                    self._packed_values(own, values, next_keys)
                with T.Else():
                    self.residual.values(rest, own.weights, own.sums)
        self.packed_values.finish(own.weights, own.sums)

    def _packed_scores(self, own: QuantizedOwn, keys: Codes, start: Expr, ahead: Ahead) -> None:
        """Emit the scores of a tile of packed keys."""
        plan = self.quantized
        if plan.per_channel:
            self._query_numbers(own, keys, start)
        else:
            self.packed[0].widen(keys, own.params, T.int32(0))
        with T.serial(plan.spans) as span:
            at, queries = T.bind(span * plan.span), own.queries.part(plan, span)
            self.packed_keys.emit(keys, queries, own.weights.scores, at, own.params, ahead)

    def _packed_values(self, own: QuantizedOwn, values: Codes, ahead: Ahead) -> None:
        """Emit the weighted sums of a tile of packed values."""
        self.packed[1].widen(values, own.params, T.int32(0))
        with T.serial(self.plan.item_rows) as row:
            ahead.ask(row)
            self.packed_values.numbers(own.weights, row, own.params)
        self.packed_values.emit(values, own.weights, own.sums, ahead)

    def _query_numbers(self, own: QuantizedOwn, keys: Codes, start: Expr) -> None:
        """Bring the scales of a tile's groups into the queries, unless they are there."""
        plan = self.quantized
        group = T.bind(start // plan.problem.group_size)
        with T.If(own.group.load(0) != group), T.Then():
            own.group.store(0, group)
            with T.serial(plan.spans) as span:
                queries = own.queries.part(plan, span)
                self.packed[0].widen(keys, own.params, T.bind(span * (2 * plan.problem.head_dim)))
                with T.serial(self.plan.item_rows) as row:
                    self.packed_keys.numbers(queries, row, own.params)

    def _rest(self, item: Item, tile: Tile, start: Expr, packed: Expr) -> Rows:
        """Return the rows of the residual that some query sees, for a tile that lies there."""
        plan, tokens = self.quantized, self.quantized.problem.block_tokens
        heads = T.cast(item.request, "int64") * plan.problem.kv_heads + item.head
        low = T.bind(T.max(tile.low, start))
        count = T.bind(T.min(tile.high, start + plan.tile) - low)
        row = T.bind(heads * tokens + (low - packed))
        widths = (plan.problem.head_dim, plan.problem.value_dim)
        keys, values = (
            rows.part(row * width) for rows, width in zip(self.rest, widths, strict=True)
        )
        return Rows(keys, values, T.bind(low - start), count)

    def _softmax(
        self, own: QuantizedOwn, item: Item, tile: Tile, start: Expr, ahead: Ahead
    ) -> None:
        """Emit masks and softmax of every row."""
        plan, problem, lanes = self.quantized, self.quantized.problem, self.plan.lanes
        quanta = T.int32(plan.tile // (self.plan.quantum(self.fold) * lanes))
        limit = T.bind(item.length - (problem.query_tokens - 1))
        end = start + plan.tile
        whole = T.And(tile.low <= start, T.And(end <= tile.high, end <= limit))
        if problem.window:
            last = item.length - problem.window
            whole = T.And(whole, start >= last)
        whole = T.bind(T.cast(whole, "int32"))
        softmax, mask = Softmax(self.plan, self.fold), Mask(self.plan, self.fold)
        with T.serial(self.plan.item_rows) as row:
            ahead.ask(plan.key_steps * plan.pass_count + row)
            scores = own.weights.scores.part(row * plan.tile)
            if problem.soft_cap:
                mask.soften(scores, quanta)
            with T.If(whole == 0), T.Then():
                seen = T.bind(limit + row // problem.group)
                low = tile.low
                if problem.window:
                    low = T.max(low, seen - problem.window)
                self._hide(scores, T.bind(low - start), T.bind(T.min(tile.high, seen) - start))
            softmax.emit(
                scores,
                own.state.part(row * (2 * lanes)),
                own.weights.factors.part(row * LANES),
                quanta,
                scores.store,
            )

    def _hide(self, scores: Region, low: Expr, high: Expr) -> None:
        """Replace all scores but those from ``low`` to ``high`` by -inf."""
        lanes = self.plan.lanes
        hidden = math.real(float("-inf"), lanes)
        with T.serial(self.plan.block // lanes) as i:
            at = T.bind(i * lanes)
            lane = T.bind(T.ramp(at, 1, lanes))
            first, end = (T.bind(vector.splat(bound, lanes)) for bound in (low, high))
            seen = T.And(lane >= first, lane < end)
            scores.store(at, T.Select(seen, scores.load(at, lanes), hidden))
