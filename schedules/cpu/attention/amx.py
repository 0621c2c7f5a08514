"""Engines on AMX tiles, for bfloat16 caches.

    scores   S^T[16 keys, rows] = K[16 keys, 32 columns] Q^T[16 pairs, rows]    keys as they lie
    values   O[rows, 16 columns] += P[rows, 32 keys] V[16 pairs, 16 columns]    pairs of rows joined

A group of query rows is folded into the rows of tiles. Keys whose rows do not lie at equal
distances (small pages, the repeated last row of a request) are copied first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.areas import Areas
from wattune.schedules.cpu import amx, math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan
from wattune.schedules.cpu.attention.scores import Operand, Scores, prefetch_row
from wattune.schedules.cpu.attention.values import Values

Expr = Any

KEYS = 16
PAIRS = 16
COLUMNS = 32
# Tiles by number: scores, keys, queries; weights, values; three sums of outputs.
SCORES, KEY, QUERY, WEIGHT, VALUE = range(5)
SUMS = (5, 6, 7)


@dataclass(frozen=True)
class Tiles:
    """The tiles and the scratch that both engines of a plan share; ``rows`` of a tile."""

    plan: Plan

    @property
    def rows(self) -> int:
        """Return the query rows of a tile."""
        return self.plan.rows

    @property
    def areas(self) -> Areas:
        """Return the scratch: tile configuration, keys, scores, weights and joined values."""
        problem = self.plan.problem
        return Areas.of(
            configuration=amx.CONFIGURATION_BYTES,
            keys=2 * KEYS * problem.head_dim,
            # Vectors of scores are loaded beyond the last row.
            scores=4 * (KEYS * self.rows + vector.LANES),
            weights=amx.ROW_BYTES * self.rows,
            values=4 * PAIRS * problem.value_dim,
        )

    def area(self, scratch: Region, name: str) -> Region:
        """Return an area of the engine's scratch, in elements of 4 bytes."""
        return scratch.part(T.int64(self.areas.starts[name] // 4))

    def begin(self, scratch: Region) -> None:
        """Emit the configuration of this thread's tiles."""
        narrow, whole = 4 * self.rows, amx.TILE_ROWS
        rows = {SCORES: whole, KEY: whole, QUERY: whole, WEIGHT: self.rows, VALUE: whole}
        rows.update(dict.fromkeys(SUMS, self.rows))
        entries = amx.configuration(rows, {SCORES: narrow, QUERY: narrow})
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
        self, fold: Fold, keys: Operand, query: Region, row: Expr, scores: Region, quanta: Expr
    ) -> None:
        """Emit products of 16 keys at a time."""
        assert self.scratch is not None
        plan, rows, width = self.plan, self.tiles.rows, self.plan.problem.head_dim
        first_query = T.bind(row // rows * (rows * (width // 2)))
        copy = self.tiles.area(self.scratch, "keys")
        step = 1 if plan.problem.layout == "HND" else plan.problem.kv_heads
        with T.serial(quanta * (plan.quantum(fold) * fold.keys // KEYS)) as chunk:
            first = T.bind(chunk * KEYS)
            if plan.prefetch:
                for key in range(KEYS):
                    prefetch_row(plan, keys, first + key, width)
            start = T.bind(keys.table.load(first))
            apart = T.int64(0)
            for key in range(1, KEYS):
                expected = start + key * step
                apart = T.bind(T.bitwise_or(apart, keys.table.load(first + key) - expected))
            with T.If(apart == 0):
                with T.Then():
                    self._products(keys.cache, start * width, step * width * 2, query, first_query)
                with T.Else():
                    self._copy(keys, first, copy)
                    self._products(copy, T.int64(0), width * 2, query, first_query)
            self._store(fold, first, scores)

    def _products(
        self, keys: Region, at: Expr, stride: int, query: Region, first_query: Expr
    ) -> None:
        """Emit the sum over all columns; ``at`` counts elements of ``keys``."""
        per = 4 if keys.dtype in ("float32", "int32") else 2
        amx.zero(SCORES)
        for part in range(self.plan.problem.head_dim // COLUMNS):
            amx.load(KEY, keys.buffer, keys.base + at + part * (amx.ROW_BYTES // per), stride)
            place = query.base + first_query + part * PAIRS * self.tiles.rows
            amx.load(QUERY, query.buffer, place, 4 * self.tiles.rows)
            amx.dot_bf16(SCORES, KEY, QUERY)

    def _copy(self, keys: Operand, first: Expr, into: Region) -> None:
        """Emit a copy of 16 keys to equal distances."""
        width = self.plan.problem.head_dim
        with T.serial(KEYS) as key:
            base = T.bind(keys.table.load(first + key) * width)
            for column in range(0, width, COLUMNS):
                row = keys.cache.load(base + column, COLUMNS)
                at = key * (width // 2) + column // 2
                into.store(at, T.reinterpret(f"{into.dtype}x{vector.LANES}", row))

    def _store(self, fold: Fold, first: Expr, scores: Region) -> None:
        """Emit the way from [key][row] to vectors whose lanes are row * keys + key."""
        assert self.scratch is not None
        rows, lanes = self.tiles.rows, self.plan.lanes
        area = self.tiles.area(self.scratch, "scores")
        amx.store(SCORES, area.buffer, area.base, 4 * rows)
        order = [
            min(lane % fold.keys * rows + lane // fold.keys, lanes - 1) for lane in range(lanes)
        ]
        for i in range(KEYS // fold.keys):
            found = T.bind(math.as_real(area.load(i * fold.keys * rows, lanes), lanes))
            at = first * fold.slots + i * lanes
            scores.store(at, found if order == list(range(lanes)) else T.Shuffle([found], order))


class AmxValues(Values):
    """Sums of values by products of weights and pairs of rows."""

    def __init__(self, plan: Plan, scores: AmxScores) -> None:
        """Share the tiles of the scores' engine; sums are in the order of columns."""
        super().__init__(plan)
        self.loader = Loader(plan.problem.dtype, plan.lanes, pairs=False)
        self.shared = scores
        self.tiles = scores.tiles

    def emit(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        factors: Region,
        sums: Region,
        quanta: Expr,
    ) -> None:
        """Emit products of 32 keys at a time; keys beyond the tile's have no weight."""
        assert self.shared.scratch is not None
        plan, width = self.plan, self.plan.problem.value_dim
        self._shrink(fold, factors, sums)
        packed = self.tiles.area(self.shared.scratch, "weights")
        joined = self.tiles.area(self.shared.scratch, "values")
        keys = T.bind(quanta * (plan.quantum(fold) * fold.keys))
        with T.serial((keys + (COLUMNS - 1)) // COLUMNS) as chunk:
            first = T.bind(chunk * COLUMNS)
            if plan.prefetch:
                for key in range(COLUMNS):
                    prefetch_row(plan, values, first + key, width)
            self._join(values, first, joined)
            self._weights(fold, weights, first, keys, packed)
            amx.load(WEIGHT, packed.buffer, packed.base, amx.ROW_BYTES)
            for start in range(0, width, 16 * len(SUMS)):
                starts = range(start, min(width, start + 16 * len(SUMS)), 16)
                for tile, column in zip(SUMS, starts, strict=False):
                    self._add(tile, column, joined, sums)

    def _add(self, tile: int, column: int, joined: Region, sums: Region) -> None:
        """Emit one block of 16 columns."""
        stride = 4 * self.total_lanes
        amx.load(tile, sums.buffer, sums.base + column, stride)
        amx.load(VALUE, joined.buffer, joined.base + column, 4 * self.plan.problem.value_dim)
        amx.dot_bf16(tile, WEIGHT, VALUE)
        amx.store(tile, sums.buffer, sums.base + column, stride)

    def _shrink(self, fold: Fold, factors: Region, sums: Region) -> None:
        """Emit sums *= factors."""
        lanes = self.plan.lanes
        for r in range(fold.rows):
            factor = T.bind(vector.splat(factors.load(r * fold.keys), lanes))
            with T.serial(self.total_lanes // lanes) as i:
                at = T.bind(r * self.total_lanes + i * lanes)
                sums.store(at, sums.load(at, lanes) * factor)

    def _join(self, values: Operand, first: Expr, into: Region) -> None:
        """Emit pairs of rows side by side: [pair][column][2]."""
        width = self.plan.problem.value_dim
        with T.serial(PAIRS) as pair:
            at = T.bind(first + 2 * pair)
            bases = [T.bind(values.table.load(at + i) * width) for i in range(2)]
            for column in range(0, width, 16):
                rows = [values.cache.load(base + column, 16) for base in bases]
                order = [lane // 2 + 16 * (lane % 2) for lane in range(COLUMNS)]
                both = T.Shuffle(rows, order)
                place = pair * width + column
                into.store(place, T.reinterpret(f"{into.dtype}x{vector.LANES}", both))

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
