"""Engines on AMX tiles, for bfloat16 caches.

    scores   S^T[16 keys, rows] = K[16 keys, 32 columns] Q^T[16 pairs, rows]    keys as they lie
    values   O[rows, 16 columns] += P[rows, 32 keys] V[16 pairs, 16 columns]    pairs of rows joined

A group of query rows is folded into the rows of tiles. Keys whose rows do not lie at equal
distances (small pages, the repeated last row of a request) are copied first. Values of a tile of
keys are joined once for all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.areas import Areas
from wattune.schedules.cpu import amx, math, vector
from wattune.schedules.cpu.attention.loads import join_rows, joined_order
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan
from wattune.schedules.cpu.attention.prefetch import Operand, ahead_of_pair, wake_row
from wattune.schedules.cpu.attention.scores import BesideScores, Scores
from wattune.schedules.cpu.attention.values import BesideSums, Values

Expr = Any

KEYS = 16
PAIRS = 16
COLUMNS = 32
# Tiles by number: scores; keys or joined values; weights; sums of outputs; parts of the queries.
SCORES, LOADED, WEIGHT, SUM = range(4)
QUERIES = (4, 5, 6, 7)


@dataclass(frozen=True)
class Tiles:
    """The tiles and the scratch that both engines of a plan share; ``rows`` of a tile."""

    plan: Plan

    @property
    def rows(self) -> int:
        """Return the query rows of a tile."""
        return self.plan.rows

    @property
    def chunks(self) -> int:
        """Return how many times 32 keys a tile of keys is."""
        return self.plan.block // COLUMNS

    @property
    def areas(self) -> Areas:
        """Return the scratch: tile configuration, keys, scores, weights and joined values."""
        problem, block = self.plan.problem, self.plan.block
        return Areas.of(
            configuration=amx.CONFIGURATION_BYTES,
            keys=2 * KEYS * problem.head_dim,
            # Vectors of scores are loaded beyond the last row.
            scores=4 * (block * self.rows + vector.LANES),
            weights=amx.ROW_BYTES * self.rows * self.chunks,
            values=2 * block * problem.value_dim,
        )

    def area(self, scratch: Region, name: str) -> Region:
        """Return an area of the engine's scratch, in elements of 4 bytes."""
        return scratch.part(T.int64(self.areas.starts[name] // 4))

    def begin(self, scratch: Region) -> None:
        """Emit the configuration of this thread's tiles."""
        narrow, whole = 4 * self.rows, amx.TILE_ROWS
        rows = {SCORES: whole, LOADED: whole, WEIGHT: self.rows, SUM: self.rows}
        rows.update(dict.fromkeys(QUERIES, whole))
        entries = amx.configuration(rows, dict.fromkeys((SCORES, *QUERIES), narrow))
        words = vector.constant(entries)
        place = self.area(scratch, "configuration")
        place.store(0, T.reinterpret(f"{place.dtype}x16", words))
        amx.configure(place.buffer, place.base)


class AmxScores(Scores):
    """Scores from products of keys and transposed queries."""

    def __init__(self, plan: Plan) -> None:
        """Describe the tiles."""
        super().__init__(plan)
        self.tiles = Tiles(plan)
        self.parts = plan.problem.head_dim // COLUMNS
        self.scratch: Region | None = None

    @property
    def query_bytes(self) -> int:
        """Return the bytes of a query row: pairs of bfloat16."""
        return 2 * self.plan.problem.head_dim

    @property
    def engine_bytes(self) -> int:
        """Return the bytes of scratch that both engines need."""
        return self.tiles.areas.bytes

    def begin(self, scratch: Region) -> None:
        """Configure the tiles of this thread."""
        self.scratch = scratch
        self.tiles.begin(scratch)

    def end(self) -> None:
        """Give the tiles back."""
        amx.release()

    def prepare(self, query: Region, at: Expr, into: Region, row: Expr) -> None:
        """Store a row's pairs as a column: [group][pair][row]."""
        rows, pairs = self.tiles.rows, self.plan.problem.head_dim // 2
        base = T.bind(row // rows * (rows * pairs) + row % rows)
        with T.serial(pairs) as pair:
            both = T.reinterpret("float32", query.load(at + 2 * pair, 2))
            into.store(base + pair * rows, both)

    def emit(
        self,
        fold: Fold,
        keys: Operand,
        query: Region,
        row: Expr,
        scores: Region,
        quanta: Expr,
        beside: BesideScores | None = None,
    ) -> None:
        """Emit products of 16 keys at a time, then the reordering of all scores.

        A vector that is loaded while the tile it comes from is being stored would wait for it.
        """
        assert self.scratch is not None
        plan, rows, width = self.plan, self.tiles.rows, self.plan.problem.head_dim
        queries = query.part(row // rows * (rows * (width // 2)))
        copy = self.tiles.area(self.scratch, "keys")
        found = self.tiles.area(self.scratch, "scores")
        if self._held:
            for part in range(self.parts):
                self._load_query(queries, part)
        step = 1 if plan.problem.layout == "HND" else plan.problem.kv_heads
        count = quanta * (plan.quantum(fold) * fold.keys)
        # Values are joined for whole chunks of 32 keys.
        with T.serial((count + (COLUMNS - 1)) // COLUMNS * (COLUMNS // KEYS)) as chunk:
            first = T.bind(chunk * KEYS)
            start = T.bind(keys.table.load(first))

            def step_beside(part: int, first: Expr = first) -> None:
                if beside is not None:
                    beside(first, part, self.parts)

            with T.If(self._apart(keys.table, first, start, step) == 0):
                with T.Then():
                    self._products(
                        keys.cache, start * width, step * width * 2, queries, step_beside
                    )
                with T.Else():
                    self._copy(keys, first, copy)
                    self._products(copy, T.int64(0), width * 2, queries, step_beside)
            amx.store(SCORES, found.buffer, found.base + first * rows, 4 * rows)
        self._reorder(fold, found, scores, quanta)

    @property
    def _held(self) -> bool:
        """Say whether all parts of the queries have tiles of their own."""
        return self.parts <= len(QUERIES)

    def _load_query(self, queries: Region, part: int) -> None:
        rows = self.tiles.rows
        place = queries.base + part * PAIRS * rows
        amx.load(QUERIES[part % len(QUERIES)], queries.buffer, place, 4 * rows)

    def _apart(self, table: Region, first: Expr, start: Expr, step: int) -> Expr:
        """Return 0 where 16 rows lie at equal distances."""
        apart = T.int64(0)
        for key in range(1, KEYS):
            expected = start + key * step
            apart = T.bind(T.bitwise_or(apart, table.load(first + key) - expected))
        return apart

    def _products(
        self,
        keys: Region,
        at: Expr,
        stride: int,
        queries: Region,
        beside: Callable[[int], None],
    ) -> None:
        """Emit the sum over all columns; ``at`` counts elements of ``keys``."""
        per = 4 if keys.dtype in ("float32", "int32") else 2
        amx.zero(SCORES)
        for part in range(self.parts):
            if not self._held:
                self._load_query(queries, part)
            amx.load(LOADED, keys.buffer, keys.base + at + part * (amx.ROW_BYTES // per), stride)
            amx.dot_bf16(SCORES, LOADED, QUERIES[part % len(QUERIES)])
            beside(part)

    def _copy(self, keys: Operand, first: Expr, into: Region) -> None:
        """Emit a copy of 16 keys to equal distances."""
        width = self.plan.problem.head_dim
        with T.serial(KEYS) as key:
            base = T.bind(keys.table.load(first + key) * width)
            for column in range(0, width, COLUMNS):
                row = keys.cache.load(base + column, COLUMNS)
                at = key * (width // 2) + column // 2
                into.store(at, T.reinterpret(f"{into.dtype}x{vector.LANES}", row))

    def _reorder(self, fold: Fold, found: Region, scores: Region, quanta: Expr) -> None:
        """Emit the way from [key][row] to vectors whose lanes are row * keys + key."""
        rows, lanes = self.tiles.rows, self.plan.lanes
        order = [
            min(lane % fold.keys * rows + lane // fold.keys, lanes - 1) for lane in range(lanes)
        ]
        with T.serial(quanta * self.plan.quantum(fold)) as i:
            bits = found.load(i * (fold.keys * rows), lanes)
            part = T.bind(math.as_real(bits, lanes))
            in_place = order == list(range(lanes))
            scores.store(i * lanes, part if in_place else T.Shuffle([part], order))


class AmxValues(Values):
    """Sums of values by products of weights and pairs of rows."""

    def __init__(self, plan: Plan, scores: AmxScores) -> None:
        """Share the tiles of the scores' engine."""
        super().__init__(plan)
        self.shared = scores
        self.tiles = scores.tiles

    def join(self, keys: Operand, values: Operand, first: Expr, part: int, parts: int) -> None:
        """Emit pairs of rows side by side: [32 keys][16 columns][pair][column][2].

        This is part ``part`` of the 16 keys from ``first`` on, beside their scores: keys and
        values are read in turn, which keeps more of memory busy than one after the other. Columns
        are in the order of `joined_order`.
        """
        plan, width = self.plan, self.plan.problem.value_dim
        into = self._area("values")
        base = T.bind(first // COLUMNS * (PAIRS * width) + first % COLUMNS // 2 * vector.LANES)
        for pair in range(part * (KEYS // 2) // parts, (part + 1) * (KEYS // 2) // parts):
            ahead_of_pair(plan, (keys, values), first, pair)
            at = [first + 2 * pair + i for i in range(2)]
            starts = [T.bind(values.table.load(key) * width) for key in at]
            for column in range(0, width, COLUMNS):
                rows = [T.bind(values.cache.load(start + column, COLUMNS)) for start in starts]
                for half, both in enumerate(join_rows(rows)):
                    tile = column // vector.LANES + half
                    into.store(base + (tile * PAIRS + pair) * vector.LANES, both)
        if part == 0:
            for operand in (keys, values):
                wake_row(plan, operand, first)

    def emit(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        factors: Region,
        sums: Region,
        quanta: Expr,
        beside: BesideSums | None = None,
    ) -> None:
        """Emit products of 32 keys at a time; keys beyond the tile's have no weight."""
        plan, rows = self.plan, self.tiles.rows
        packed, joined = self._area("weights"), self._area("values")
        keys = T.bind(quanta * (plan.quantum(fold) * fold.keys))
        chunks = T.bind((keys + (COLUMNS - 1)) // COLUMNS)
        self._shrink(fold, factors, sums)
        with T.serial(chunks) as chunk:
            into = packed.part(chunk * (rows * vector.LANES))
            self._weights(fold, weights, T.bind(chunk * COLUMNS), keys, into)
        stride, size = 4 * self.total_lanes, PAIRS * vector.LANES
        count = self.total_lanes // vector.LANES
        for tile in range(count):
            place = sums.base + tile * vector.LANES
            if beside is not None:
                beside(tile, count)
            amx.load(SUM, sums.buffer, place, stride)
            with T.serial(chunks) as chunk:
                weight = packed.base + chunk * (rows * vector.LANES)
                amx.load(WEIGHT, packed.buffer, weight, amx.ROW_BYTES)
                value = joined.base + chunk * (PAIRS * plan.problem.value_dim) + tile * size
                amx.load(LOADED, joined.buffer, value, amx.ROW_BYTES)
                amx.dot_bf16(SUM, WEIGHT, LOADED)
            amx.store(SUM, sums.buffer, place, stride)

    def natural(self, sums: Region, at: Expr, group: int) -> list[Expr]:
        """Return a group of columns of a row's sums, in order."""
        return joined_order(sums, at, group)

    def _area(self, name: str) -> Region:
        assert self.shared.scratch is not None
        return self.tiles.area(self.shared.scratch, name)

    def _shrink(self, fold: Fold, factors: Region, sums: Region) -> None:
        """Emit sums *= factors."""
        lanes = self.plan.lanes
        for r in range(fold.rows):
            factor = T.bind(vector.splat(factors.load(r * fold.keys), lanes))
            with T.serial(self.total_lanes // lanes) as i:
                at = T.bind(r * self.total_lanes + i * lanes)
                sums.store(at, sums.load(at, lanes) * factor)

    def _weights(self, fold: Fold, weights: Region, first: Expr, keys: Expr, into: Region) -> None:
        """Emit the weights of 32 keys as rows of bfloat16, 0 beyond ``keys``."""
        pairs = max(2, fold.keys)
        with T.serial(COLUMNS // pairs) as run:
            key = T.bind(first + run * pairs)
            with T.If(key < keys):
                with T.Then():
                    self._run(fold, weights, key, run * (pairs // 2), into)
                with T.Else():
                    for r in range(fold.rows):
                        zero = math.integer(0, pairs // 2)
                        into.store(r * vector.LANES + run * (pairs // 2), zero)

    def _run(self, fold: Fold, weights: Region, key: Expr, at: Expr, into: Region) -> None:
        """Emit one vector's keys, or two keys of two vectors, for every row."""
        lanes = self.plan.lanes
        halves = [
            _rounded(T.bind(weights.load(key * fold.slots + i * lanes, lanes)), lanes)
            for i in range(max(1, 2 // fold.keys))
        ]
        if len(halves) == 2:
            upper = T.shift_left(halves[1], math.integer(16, lanes))
            both = T.bind(T.bitwise_or(halves[0], upper))
            for r in range(fold.rows):
                into.store(r * vector.LANES + at, T.Shuffle([both], [r]))
            return
        narrow = T.bind(T.cast(halves[0], f"uint16x{lanes}"))
        pairs = T.bind(T.reinterpret(f"{into.dtype}x{lanes // 2}", narrow))
        count = fold.keys // 2
        for r in range(fold.rows):
            part = pairs if count == lanes // 2 else T.Shuffle([pairs], _span(r * count, count))
            into.store(r * vector.LANES + at, part)


def _span(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _rounded(value: Expr, lanes: int) -> Expr:
    """Return the bits of bfloat16 nearest to numbers >= 0, in the low halves of int32 lanes."""
    bits = T.bind(math.as_integer(value, lanes))
    low = T.shift_right(bits, math.integer(16, lanes))
    odd = T.bitwise_and(low, math.integer(1, lanes))
    raised = bits + (odd + math.integer(0x7FFF, lanes))
    return T.bind(T.shift_right(raised, math.integer(16, lanes)))
