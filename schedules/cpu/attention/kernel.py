"""The loop nest of attention kernels.

    for item, chunk in the thread's share:               # item: a request's KV head
        for tile in the chunk's keys:                     # its row table is built one tile ahead
            for rows in the item's query rows:
                s = q k^T;  mask;  p = softmax so far;  acc = acc * shrink + p v
        out = acc / l, or, of several chunks, (m, l, acc) to the workspace
    merge the chunks of each item, in order

How an item is cut depends on its own keys alone, so results do not depend on the batch, nor on
the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.finish import Finish
from wattune.schedules.cpu.attention.memory import Memory, Region, flat
from wattune.schedules.cpu.attention.overwrite import overwrite
from wattune.schedules.cpu.attention.plan import Fold, Plan, Scratch
from wattune.schedules.cpu.attention.scores import Operand, Scores
from wattune.schedules.cpu.attention.softmax import Mask, Softmax
from wattune.schedules.cpu.attention.streams import Item, Stream, Tiles
from wattune.schedules.cpu.attention.values import Values
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


class Kernel:
    """Emits one kernel."""

    def __init__(
        self,
        plan: Plan,
        scratch: Scratch,
        scores: Scores,
        values: Values,
        stream: type[Stream],
    ) -> None:
        """Keep the parts; ``stream`` makes what names the keys."""
        self.plan = plan
        self.scratch = scratch
        self.scores = scores
        self.values = values
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
                self._phases(tensors)
        else:
            self._phases(tensors)

    def _phases(self, tensors: Tensors) -> None:
        """Emit all phases."""
        if "k" in tensors.buffers:
            overwrite(self.plan, tensors)
        self.tensors = tensors
        self.open(tensors)
        self.finish = Finish(self.plan, tensors, self.values)
        self.query = flat(tensors["q"])
        self.batch = T.cast(tensors.sizes["batch"], "int32")
        self.stream.prepare()
        if self.plan.threads > 1:
            with T.parallel(self.plan.threads) as thread:
                self._share(thread)
        else:
            self._share(T.int32(0))
        if self.plan.splits > 1:
            self._merge()

    def _items(self) -> Any:
        """Return the loops over requests, KV heads and lists."""
        return T.grid(self.batch, self.plan.problem.kv_heads, self.plan.items)

    def _item(self, request: Expr, head: Expr, part: Expr) -> Item:
        return Item(request, head, part, T.bind(self.tensors["seq_lens"][request]))

    def _chunks(self, tiles: Expr) -> Expr:
        """Return how many chunks an item of so many tiles is cut into."""
        least = self.plan.split_tiles
        whole = (tiles + (least - 1)) // least
        return T.bind(T.max(T.min(T.int32(self.plan.splits), whole), T.int32(1)))

    def _share(self, thread: Expr) -> None:
        """Emit the walk over all chunks, and the work on those in the thread's share."""
        threads = self.plan.threads
        own = self.own(thread)
        done = Region(vector.array(2, "int64"), 0, "int64")
        done.store(0, T.int64(0))
        done.store(1, T.int64(0))
        if threads > 1:
            with self._items() as (request, head, part):
                tiles = self.stream.tiles(self._item(request, head, part))
                done.store(1, done.load(1) + T.cast(tiles, "int64"))
        with self._items() as (request, head, part):
            item = self._item(request, head, part)
            tiles = T.bind(self.stream.tiles(item))
            chunks = self._chunks(tiles) if self.plan.splits > 1 else T.int32(1)
            with T.serial(chunks) as chunk:
                first, end = self._bounds(tiles, chunks, chunk)
                if threads == 1:
                    self._chunk(own, item, chunks, chunk, first, end)
                else:
                    # The thread in whose share the middle of the chunk lies.
                    middle = 2 * done.load(0) + T.cast(end - first, "int64")
                    all_tiles = T.max(done.load(1), T.int64(1))
                    owner = T.min(middle * threads // (2 * all_tiles), T.int64(threads - 1))
                    with T.If(owner == T.cast(thread, "int64")), T.Then():
                        self._chunk(own, item, chunks, chunk, first, end)
                    done.store(0, done.load(0) + T.cast(end - first, "int64"))

    def _bounds(self, tiles: Expr, chunks: Expr, chunk: Expr) -> tuple[Expr, Expr]:
        """Return the first tile of a chunk, and the one after its last."""
        if self.plan.splits == 1:
            return T.int32(0), tiles
        return T.bind(tiles * chunk // chunks), T.bind(tiles * (chunk + 1) // chunks)

    def _chunk(
        self, own: Own, item: Item, chunks: Expr, chunk: Expr, first: Expr, end: Expr
    ) -> None:
        """Emit the work on one chunk."""
        self._start(own, item)
        with T.If(first < end), T.Then():
            self.tiles(own, item, first, end)
        self.finish.totals(own.state, own.totals)
        if self.plan.splits == 1:
            self.finish.outputs(item, own.sums, own.totals)
            return
        with T.If(chunks == 1):
            with T.Then():
                self.finish.outputs(item, own.sums, own.totals)
            with T.Else():
                kept = self._kept(item, chunk)
                self.finish.keep(own.sums, own.totals, *kept)

    def tiles(self, own: Own, item: Item, first: Expr, end: Expr) -> None:
        """Emit the tiles of a chunk, each table one tile ahead."""
        self.stream.begin(item, first)
        self.stream.build(item, first, own.tiles)
        with T.serial(end - first) as i:
            own.tiles.advance()
            with T.If(first + i + 1 < end), T.Then():
                self.stream.build(item, first + i + 1, own.tiles)
            self._tile(own)

    def _start(self, own: Own, item: Item) -> None:
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
        plan, tiles = self.plan, own.tiles
        ahead = tiles.rows.part(min(plan.prefetch, plan.block))
        count, masked = (T.bind(flag.load(0)) for flag in (tiles.counts, tiles.masked))
        for fold, start, groups in plan.folds:
            quantum = plan.quantum(fold) * fold.keys
            quanta = T.bind((count + (quantum - 1)) // quantum)
            with T.serial(groups) as group:
                row = T.bind(start + group * fold.rows)
                at = T.bind((start // plan.rows + group) * plan.lanes)
                # The first group of rows asks for all that is ahead.
                fresh = None if plan.groups == 1 else row == 0
                keys = Operand(self.keys, tiles.rows, ahead, fresh)
                values = Operand(self.cached_values, tiles.rows, ahead, fresh)
                self.scores.emit(fold, keys, own.query, row, own.scores, quanta)
                self._mask(fold, own, tiles.positions, own.limits.part(at), masked, quanta)
                softmax = Softmax(plan, fold)
                weights = own.scores if self.values.in_place else own.weights
                keep = partial(self.values.keep, weights)
                softmax.emit(own.scores, own.state.part(2 * at), own.factors, quanta, keep)
                sums = own.sums.part(row * self.values.total_lanes)
                self.values.emit(fold, values, weights, own.factors, sums, quanta)

    def _mask(
        self, fold: Fold, own: Own, positions: Region, limits: Region, masked: Expr, quanta: Expr
    ) -> None:
        mask = Mask(self.plan, fold)
        if self.plan.problem.soft_cap:
            mask.soften(own.scores, quanta)
        with T.If(masked != 0), T.Then():
            mask.hide(own.scores, positions, limits, quanta)

    def _kept(self, item: Item, chunk: Expr) -> tuple[Region, Region]:
        """Return where the state of an item's chunk is kept: sums, and maxima and totals."""
        plan = self.plan
        at = T.cast(item.request, "int64") * plan.problem.kv_heads + item.head
        at = T.bind(((at * plan.items + item.part) * plan.splits + chunk) * plan.item_rows)
        sums = self.memory.shared("sums").part(at * self.values.total_lanes)
        return sums, self.memory.shared("totals").part(at * 2)

    def _merge(self) -> None:
        """Emit the merge of items of several chunks, and their outputs."""
        problem = self.plan.problem
        loop = T.parallel if self.plan.threads > 1 else T.serial
        with (
            loop(self.batch * problem.kv_heads) as at,
            T.serial(self.plan.items) as part,
        ):
            item = self._item(at // problem.kv_heads, at % problem.kv_heads, part)
            chunks = self._chunks(self.stream.tiles(item))
            with T.If(chunks > 1), T.Then():
                self.finish.merge(
                    chunks,
                    lambda chunk: self._kept(item, chunk)[0],
                    lambda chunk: self._kept(item, chunk)[1],
                )
                self.finish.outputs(item, *self._kept(item, T.int32(0)))
