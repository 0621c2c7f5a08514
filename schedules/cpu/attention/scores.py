"""Scores of a tile: q . k of every row of a group and every key.

An engine loads each vector of keys once for all rows of the group, sums in registers, one
register a row and key, and reduces 16 (8, 4) registers at once to one vector of scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan, groups_of
from wattune.schedules.cpu.attention.prefetch import Operand, prefetch_row, wake_row

Expr = Any

# Products that are unrolled before a loop over the columns of a row is worth while.
MOST_PRODUCTS = 320

# Emits a part of what is done beside the scores of keys: (first key, part, parts).
BesideScores = Callable[[Expr, int, int], None]


class Scores(ABC):
    """Scores a tile of keys for a group of rows."""

    def __init__(self, plan: Plan) -> None:
        """Keep the plan."""
        self.plan = plan

    @property
    @abstractmethod
    def query_bytes(self) -> int:
        """Return the bytes of a prepared query row."""

    @abstractmethod
    def prepare(self, query: Region, at: Expr, into: Region, row: Expr) -> None:
        """Emit the conversion of the query row at an element into row ``row`` of the scratch."""

    @abstractmethod
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
        """Emit q . k of the group that starts at ``row``, for whole quanta of keys.

        ``beside(first, part, parts)`` emits a part of what is done beside the scores of the keys
        from ``first`` on.
        """


class RegisterScores(Scores):
    """Scores by vectors of columns; subclasses load a group of columns and multiply."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Return the columns of a group."""

    @property
    @abstractmethod
    def vectors(self) -> int:
        """Return the vectors of a group."""

    @abstractmethod
    def load(self, keys: Region, at: Expr) -> list[Expr]:
        """Load a group of columns of a key."""

    @abstractmethod
    def load_query(self, query: Region, at: Expr) -> Expr:
        """Load a vector of a prepared query row."""

    @abstractmethod
    def product(self, total: Expr | None, key: Expr, query: Expr) -> Expr:
        """Return total + key * query."""

    @property
    def starts(self) -> list[int]:
        """Return where the groups of a key start."""
        return groups_of(self.plan.problem.head_dim, self.width)

    @property
    def row_vectors(self) -> int:
        """Return the vectors of a query row."""
        return len(self.starts) * self.vectors

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
        """Emit steps of ``unroll`` vectors of scores."""
        plan = self.plan
        unroll = min(plan.unroll, plan.block // fold.keys)
        step_keys = fold.keys * unroll
        steps = quanta * (plan.quantum(fold) // unroll)
        with T.serial(steps) as step:
            first = T.bind(step * step_keys)
            bases = [
                T.bind(keys.table.load(first + key) * plan.problem.head_dim)
                for key in range(step_keys)
            ]

            # 0, which LLVM cannot know: queries that do not fit registers stay in memory, where
            # they are aligned; LLVM would copy them to the stack before the loop.
            zero: Expr = 0
            if not self._held(fold):
                zero = T.bind(T.shift_right(keys.table.load(first), T.int64(62)))

            wake_row(plan, keys, first, step_keys)

            def ahead(key: int, first: Expr = first) -> None:
                prefetch_row(plan, keys, first + key)

            totals = self._products(fold, unroll, keys.cache, bases, query, row + zero, ahead)
            for part in range(unroll):
                lanes: list[Expr | None] = [None] * plan.lanes
                for r in range(fold.rows):
                    for k in range(fold.keys):
                        lanes[r * fold.keys + k] = totals[r, part * fold.keys + k]
                scores.store((step * unroll + part) * plan.lanes, across(lanes, plan.lanes))

    def _held(self, fold: Fold) -> bool:
        """Say whether a group's queries fit the registers that sums leave."""
        return fold.rows * self.row_vectors <= (16 if self.plan.lanes == vector.LANES else 4)

    def _products(
        self,
        fold: Fold,
        unroll: int,
        cache: Region,
        bases: Sequence[Expr],
        query: Region,
        row: Expr,
        ahead: Callable[[int], None],
    ) -> dict[tuple[int, int], Expr]:
        """Emit the sums of products of each row and key; ``ahead`` prefetches beside a key."""
        lanes, row_vectors = self.plan.lanes, self.row_vectors
        pairs = [(r, k) for r in range(fold.rows) for k in range(fold.keys * unroll)]
        sums = vector.Registers(len(pairs), "float32")
        slot = {pair: i * vector.LANES for i, pair in enumerate(pairs)}
        kind = math.kind("float32", lanes)
        rows = [T.bind((row + r) * (row_vectors * lanes)) for r in range(fold.rows)]

        def add(k: int, start: Expr, at: Expr, fresh: bool) -> None:
            for v, part in enumerate(self.load(cache, bases[k] + start)):
                for r in range(fold.rows):
                    q = T.bind(self.load_query(query, rows[r] + (at * self.vectors + v) * lanes))
                    total = None if fresh and v == 0 else sums.load(slot[r, k], kind)
                    sums.store(slot[r, k], self.product(total, part, q))

        def group(start: Expr, at: Expr, fresh: bool) -> None:
            loaded = [self.load(cache, base + start) for base in bases]
            for v in range(self.vectors):
                for r in range(fold.rows):
                    q = T.bind(self.load_query(query, rows[r] + (at * self.vectors + v) * lanes))
                    for k in range(len(bases)):
                        total = None if fresh and v == 0 else sums.load(slot[r, k], kind)
                        sums.store(slot[r, k], self.product(total, loaded[k][v], q))

        starts, count = self.starts, len(bases)
        together = max(1, MOST_PRODUCTS // (len(pairs) * self.vectors))
        if self._held(fold):
            # Key by key: memory is read in order, as hardware prefetchers like it.
            for k in range(count):
                ahead(k)
                for i, start in enumerate(starts):
                    add(k, T.int32(start), T.int32(i), i == 0)
        elif len(starts) <= together:
            for i, start in enumerate(starts):
                for k in range(i * count // len(starts), (i + 1) * count // len(starts)):
                    ahead(k)
                group(T.int32(start), T.int32(i), i == 0)
        else:
            for k in range(count):
                ahead(k)
            for pair in pairs:
                sums.store(slot[pair], math.real(0.0, lanes))
            even = len(starts) - (starts[-1] % self.width != 0)
            with T.serial(even) as i:
                group(i * self.width, i, False)
            for i in range(even, len(starts)):
                group(T.int32(starts[i]), T.int32(i), False)
        return {pair: sums.load(at, kind) for pair, at in slot.items()}


class FmaScores(RegisterScores):
    """Products in fp32: keys and queries are converted."""

    def __init__(self, plan: Plan) -> None:
        """Choose how rows are loaded."""
        super().__init__(plan)
        self.loader = Loader.of(plan.problem.dtype, plan.lanes, plan.problem.head_dim)

    @property
    def width(self) -> int:
        """Return the columns of a load."""
        return self.loader.width

    @property
    def vectors(self) -> int:
        """Return the vectors of a load."""
        return self.loader.vectors

    @property
    def query_bytes(self) -> int:
        """Return the bytes of a query row in fp32."""
        return 4 * self.row_vectors * self.plan.lanes

    def prepare(self, query: Region, at: Expr, into: Region, row: Expr) -> None:
        """Convert a query row; columns of the last group that come twice are zero once."""
        lanes = self.plan.lanes
        base = T.bind(row * (self.row_vectors * lanes))
        for i, start in enumerate(self.starts):
            twice = i * self.width - start
            for v, part in enumerate(self.loader.load(query, at + start)):
                if twice:
                    kept = [-(column >= twice) for column in self.loader.columns(v)]
                    bits = T.bitwise_and(math.as_integer(part, lanes), vector.constant_i32(kept))
                    part = math.as_real(bits, lanes)
                into.store(base + (i * self.vectors + v) * lanes, part)

    def load(self, keys: Region, at: Expr) -> list[Expr]:
        """Load and convert."""
        return self.loader.load(keys, at)

    def load_query(self, query: Region, at: Expr) -> Expr:
        """Load a vector of fp32."""
        return query.load(at, self.plan.lanes)

    def product(self, total: Expr | None, key: Expr, query: Expr) -> Expr:
        """Multiply and add."""
        return key * query if total is None else vector.multiply_add(key, query, total)


def across(values: Sequence[Expr | None], lanes: int) -> Expr:
    """Return a vector whose lane i is the sum of the lanes of values[i].

    Each step halves the number of vectors: pairs of lanes within 128 bits, then whole 128 bits.
    """
    level = list(values)
    for distance in (1, 2):
        if len(level) == 1:
            break
        level = [
            _merge(level[i : i + 2], _unpack(lanes, distance)) for i in range(0, len(level), 2)
        ]
    while len(level) > 1:
        level = [_merge(level[i : i + 2], _blocks(lanes)) for i in range(0, len(level), 2)]
    return level[0]


def _merge(pair: Sequence[Expr | None], orders: tuple[list[int], list[int]]) -> Expr | None:
    """Add the two shuffles of a pair; a missing half repeats the other."""
    left, right = pair
    if left is None:
        return None
    both = [left, left if right is None else right]
    return T.bind(T.Shuffle(both, orders[0]) + T.Shuffle(both, orders[1]))


def _unpack(lanes: int, distance: int) -> tuple[list[int], list[int]]:
    """Return the orders of unpacklo and unpackhi of ``distance`` lanes."""
    segment = min(lanes, 4)
    halves: tuple[list[int], list[int]] = ([], [])
    for block in range(0, lanes, segment):
        for half in (0, 1):
            for at in range(0, segment // 2, distance):
                first = block + half * (segment // 2) + at
                low = list(range(first, first + distance))
                halves[half].extend([*low, *(lanes + lane for lane in low)])
    return halves


def _blocks(lanes: int) -> tuple[list[int], list[int]]:
    """Return the orders that take even, and odd, 128-bit blocks of both vectors."""
    blocks = range(0, 2 * lanes, 4)
    even = [block + lane for block in blocks[::2] for lane in range(4)]
    odd = [block + lane for block in blocks[1::2] for lane in range(4)]
    return even, odd
