"""Weighted sums of a tile's values: sums[row] += p[row, key] * v[key].

Sums are fp32 in memory between tiles and in registers within a pass over a tile's keys. A pass
covers ``columns`` vectors of columns; every loaded value serves all rows of the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan, groups_of
from wattune.schedules.cpu.attention.prefetch import Operand, prefetch_row, wake_row

Expr = Any

# Emits a part of what is done beside the sums of a tile: (part, parts).
BesideSums = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """Columns of a pass: number and column of the first group, how many groups; its number."""

    first: Expr
    start: Expr
    groups: int
    number: Expr


@dataclass(frozen=True)
class Keys:
    """A stretch of keys: its first step, its steps, those of a whole stretch; keys of a step."""

    first: Expr
    steps: Expr
    most: int
    step: int


@contextmanager
def _passes(count: int, groups: int, width: int) -> Iterator[tuple[Expr, Expr, int, Expr]]:
    with T.serial(count) as i:
        yield i * groups, i * (groups * width), groups, i


# Keys that a step unrolls where a vector of scores covers fewer.
LEAST_KEYS = 4


class Values(ABC):
    """Accumulates a tile of values for a group of rows."""

    def __init__(self, plan: Plan) -> None:
        """Choose how rows are loaded; sums keep the order of the loader's columns."""
        self.plan = plan
        self.loader = Loader.of(plan.problem.dtype, plan.lanes, plan.problem.value_dim)

    @property
    def starts(self) -> list[int]:
        """Return where the groups of columns start; the last two may overlap."""
        return groups_of(self.plan.problem.value_dim, self.loader.width)

    @property
    def total_lanes(self) -> int:
        """Return the fp32 sums of a row."""
        return self.loader.count(self.plan.problem.value_dim) * self.plan.lanes

    @property
    def in_place(self) -> bool:
        """Say whether weights replace the scores they are made of."""
        return True

    def keep(self, weights: Region, at: Expr, weight: Expr) -> None:
        """Emit the store of a vector of weights, number ``at / lanes``."""
        weights.store(at, weight)

    @abstractmethod
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
        """Emit sums[row] = sums[row] * factors[row] + sum of weights times values.

        ``weights`` and ``factors`` are in the order of the fold's lanes; ``sums`` starts at the
        group's first row. ``beside(part, parts)`` emits a part of what is done beside.
        """

    def natural(self, sums: Region, at: Expr, group: int) -> list[Expr]:
        """Return a group of columns of a row's sums, in order."""
        lanes, count = self.plan.lanes, self.loader.vectors
        parts = [T.bind(sums.load(at + (group * count + v) * lanes, lanes)) for v in range(count)]
        return self.loader.natural(parts)


class RegisterValues(Values):
    """Sums in registers; subclasses load and multiply ``keys`` keys at a time."""

    keys: ClassVar[int]

    @abstractmethod
    def load(self, cache: Region, bases: Sequence[Expr], start: int) -> list[Expr]:
        """Load a group of columns of ``keys`` keys, as the loader's number of vectors."""

    @abstractmethod
    def weight(self, fold: Fold, weights: Region, first: Expr, key: int, row: int) -> Expr:
        """Return a row's weights of the keys from ``first`` + ``key`` on, in every lane."""

    @abstractmethod
    def product(self, total: Expr, value: Expr, weight: Expr) -> Expr:
        """Return total + value * weight."""

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
        """Emit stretches of keys, and passes over the columns of each."""
        plan = self.plan
        step = min(max(LEAST_KEYS, fold.keys), plan.block)
        steps = T.bind(quanta * (plan.quantum(fold) * fold.keys // step))
        most = max(1, min(plan.stretch, plan.block) // step)

        def run(stretch: Expr) -> None:
            first = T.bind(stretch * most)
            keys = Keys(first, T.bind(T.min(T.int32(most), steps - first)), most, step)
            for columns in self._columns():
                with columns as (group, start, groups, number):
                    span = Span(group, start, groups, number)
                    held = self._held(fold, factors, sums, span, stretch)
                    self._keys(fold, values, weights, held, keys, span)
                    self._keep(fold, held, sums, span)

        if most * step == plan.block:
            run(T.int32(0))
        else:
            with T.serial((steps + (most - 1)) // most) as stretch:
                run(stretch)

    def _columns(self) -> Iterator[AbstractContextManager[tuple[Expr, Expr, int, Expr]]]:
        """Yield the passes: loops of first group, first column, groups, number."""
        groups = max(1, self.plan.columns // self.loader.vectors)
        width, starts = self.loader.width, self.starts
        whole = self.plan.problem.value_dim // width
        passes = whole // groups
        if passes:
            yield _passes(passes, groups, width)
        if rest := whole % groups:
            first = T.int32(passes * groups)
            yield nullcontext((first, T.int32(starts[passes * groups]), rest, T.int32(passes)))
        if whole < len(starts):
            number = T.int32(self.passes - 1)
            yield nullcontext((T.int32(whole), T.int32(starts[whole]), 1, number))

    @property
    def passes(self) -> int:
        """Return how many passes a tile takes."""
        groups = max(1, self.plan.columns // self.loader.vectors)
        whole = self.plan.problem.value_dim // self.loader.width
        return -(-whole // groups) + (len(self.starts) - whole)

    def _prefetch(self, values: Operand, at: Expr, keys: Keys, span: Span, key: int) -> None:
        """Ask, beside a step's key, for what it is to ask for of what is ahead of a stretch.

        Every pass asks for whole rows, in order, of its part of the stretch: hardware prefetchers
        follow, and memory is as busy in the last pass as in the first.
        """
        share = -(-keys.step // self.passes)
        for i in range(share):
            if i * keys.step // share // self.keys * self.keys != key:
                continue
            number = T.bind((span.number * keys.most + at) * share + i)
            ahead = keys.first * keys.step + number
            if share * self.passes == keys.step:
                prefetch_row(self.plan, values, ahead)
            else:
                with T.If(number < keys.most * keys.step), T.Then():
                    prefetch_row(self.plan, values, ahead)

    def _places(self, fold: Fold, span: Span) -> list[tuple[Expr, int]]:
        """Return for each register its place in the sums, and its lane in the registers."""
        count = span.groups * self.loader.vectors
        first = span.first * (self.loader.vectors * self.plan.lanes)
        return [
            (r * self.total_lanes + first + c * self.plan.lanes, (r * count + c) * vector.LANES)
            for r in range(fold.rows)
            for c in range(count)
        ]

    def _held(
        self, fold: Fold, factors: Region, sums: Region, span: Span, stretch: Expr
    ) -> vector.Registers:
        """Load the sums of a pass, and shrink them in the tile's first stretch."""
        lanes = self.plan.lanes
        places = self._places(fold, span)
        held = vector.Registers(len(places), "float32")
        for i, (at, slot) in enumerate(places):
            row = i * fold.rows // len(places)
            factor = factors.load(row * fold.keys)
            factor = vector.splat(T.Select(stretch == 0, factor, T.float32(1)), lanes)
            held.store(slot, sums.load(at, lanes) * factor)
        return held

    def _keep(self, fold: Fold, held: vector.Registers, sums: Region, span: Span) -> None:
        """Store the sums of a pass."""
        for at, slot in self._places(fold, span):
            sums.store(at, held.load(slot, math.kind("float32", self.plan.lanes)))

    def _keys(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        held: vector.Registers,
        keys: Keys,
        span: Span,
    ) -> None:
        """Add a stretch of keys."""
        plan, step = self.plan, keys.step
        width = plan.problem.value_dim
        kind = math.kind("float32", plan.lanes)
        with T.serial(keys.steps) as at:
            first = T.bind((keys.first + at) * step)
            with T.If(span.number.equal(0)), T.Then():
                wake_row(plan, values, first, step)
            for key in range(0, step, self.keys):
                if values.next is not None:
                    self._prefetch(values, at, keys, span, key)
                bases = [
                    T.bind(values.table.load(first + key + k) * width + span.start)
                    for k in range(self.keys)
                ]
                parts = []
                for group in range(span.groups):
                    parts += self.load(values.cache, bases, group * self.loader.width)
                for r in range(fold.rows):
                    weight = T.bind(self.weight(fold, weights, first, key, r))
                    for c, part in enumerate(parts):
                        slot = (r * len(parts) + c) * vector.LANES
                        held.store(slot, self.product(held.load(slot, kind), part, weight))


class FmaValues(RegisterValues):
    """Products in fp32."""

    keys = 1

    def load(self, cache: Region, bases: Sequence[Expr], start: int) -> list[Expr]:
        """Load and convert."""
        return self.loader.load(cache, bases[0] + start)

    def weight(self, fold: Fold, weights: Region, first: Expr, key: int, row: int) -> Expr:
        """Repeat one weight."""
        lane = key // fold.keys * self.plan.lanes + row * fold.keys + key % fold.keys
        return vector.splat(weights.load(first * fold.slots + lane), self.plan.lanes)

    def product(self, total: Expr, value: Expr, weight: Expr) -> Expr:
        """Multiply and add."""
        return vector.multiply_add(value, weight, total)
