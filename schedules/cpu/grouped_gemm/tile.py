"""One block of an expert's rows of weights, times a few of its rows of activations.

    sums[rows, groups] = 0
    for step in columns:                        # unrolled, prefetched
        w[groups] = vectors of the stream
        for row: sums[row, :] += w[:] * x[row, columns of the step]

Products by format and instruction set are the subclasses of `Engine`, in `engines.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.grouped_gemm.layout import ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import Memory, Plan, Stage
from wattune.schedules.cpu.vector import Registers

Expr = Any
Buffer = Any

LANES = vector.LANES
F32 = f"float32x{LANES}"
I32 = f"int32x{LANES}"
# What is to be read as many bytes later is asked for into the second cache: it fills the first.
FAR = 1 << 15
# The numbers of rows that tiles are made for, where nothing else is known.
ROW_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Ahead:
    """What a tile fetches early while it reads: bytes that come ``distance`` later.

    With a ``shift``, distance and shift are expressions, and it is a part of what will be read in
    the second cache later: 1 / 2^shift as many bytes as the tile reads.
    """

    distance: Expr
    shift: Expr | None = None

    def fetch(self, tile: Tile, at: Expr, group: int) -> None:
        """Emit the prefetch beside the load of a step's vector."""
        if self.shift is not None:
            offset = T.shift_right(at - tile.start, self.shift)
            place = tile.start + self.distance + offset + tile.stage.offset(group)
            vector.prefetch(tile.weights, place, level=2)
        elif self.distance:
            place = at + tile.stage.offset(group) + self.distance
            vector.prefetch(tile.weights, place, level=2 if self.distance >= FAR else 1)


@dataclass(frozen=True)
class Slice:
    """One of several slices of ``columns`` columns."""

    columns: int
    index: Expr
    last: Expr


@dataclass(frozen=True)
class Tile:
    """Where one product of ``rows`` rows finds its operands.

    ``block`` is its number, ``base`` its byte in ``weights`` and ``start`` that of the ``slice``,
    if there are several. ``first`` is the position of the first row, ``chunk`` the number of the
    tile along a job's rows, ``worker`` the thread; ``ahead`` what is fetched early.
    """

    plan: Plan
    stage: Stage
    memory: Memory
    weights: Buffer
    block: Expr
    base: Expr
    start: Expr
    slice: Slice | None
    first: Expr
    chunk: Expr
    rows: int
    worker: Expr
    ahead: Ahead

    @property
    def product(self) -> ExpertLayout:
        """The weights."""
        return self.stage.product

    @property
    def groups(self) -> int:
        """Vectors of 16 rows of weights beside each other."""
        return self.stage.groups

    def span(self, units: int, columns: int) -> tuple[Expr, Expr]:
        """Return the first of the units of ``columns`` that are multiplied, and how many."""
        if self.slice is None:
            return 0, units
        each = self.slice.columns // columns
        first = T.bind(T.cast(self.slice.index, "int64") * each)
        return first, T.min(T.int64(each), units - first)

    def sums_at(self, row: Expr, group: int) -> Expr:
        """Return where the sums of a row and a group lie in memory."""
        start = self.memory.sums_at(self.product, self.first + row)
        return start + self.block * self.product.block_rows + self.stage.row_offset(group)

    def before(self, row: Expr, group: int) -> Expr:
        """Load what `Engine.emit` left of the slices before, as float32."""
        return self.memory.sums.vload([self.sums_at(row, group)], F32)

    def row_starts(self) -> list[Expr]:
        """Bind where each row of activations starts, in bytes."""
        stride = self.plan.stride(self.product)
        start = self.memory.at("activations", T.cast(self.first, "int64") * stride)
        return [T.bind(start + row * stride) for row in range(self.rows)]

    def slot(self, row: int, group: int) -> int:
        """Return the first lane of the sum of a row and a group."""
        return (row * self.groups + group) * LANES

    def zeros(self, dtype: str) -> Registers:
        """Return all sums, zero."""
        sums = Registers(self.rows * self.groups, dtype)
        self._clear(sums, dtype)
        return sums

    def begin(self, dtype: str) -> Registers:
        """Return all sums as the slices before left them."""
        if self.slice is None:
            return self.zeros(dtype)
        sums = Registers(self.rows * self.groups, dtype)
        with T.If(self.slice.index == 0):
            with T.Then():
                self._clear(sums, dtype)
            with T.Else():
                for row in range(self.rows):
                    for group in range(self.groups):
                        value = T.reinterpret(f"{dtype}x{LANES}", self.before(row, group))
                        sums.store(self.slot(row, group), value)
        return sums

    def _clear(self, sums: Registers, dtype: str) -> None:
        zero = math.integer(0, LANES) if dtype == "int32" else math.real(0.0, LANES)
        for at in range(0, self.rows * self.groups * LANES, LANES):
            sums.store(at, zero)

    def load(self, at: Expr) -> list[Expr]:
        """Bind the vectors of a step at a byte, and ask for those that come later."""
        found = []
        for group in range(self.groups):
            self.ahead.fetch(self, at, group)
            found.append(T.bind(vector.load_bytes(self.weights, at + self.stage.offset(group))))
        return found

    def fetch(self, at: Expr) -> None:
        """Ask for what comes as much later as after the vectors of a step: no line is left out."""
        for group in range(self.groups):
            self.ahead.fetch(self, at, group)

    def floats(self, at: Expr, group: int) -> Expr:
        """Load 16 float32 of the stream."""
        return vector.load_as(self.weights, at + self.stage.offset(group), "float32", LANES)

    def scale(self, row: Expr) -> Expr:
        """Return the scale of a row of activations in every lane."""
        return vector.splat(self.memory.scales[self.memory.at("scales", self.first + row)])

    def total(self, row: Expr, group: Expr) -> Expr:
        """Return a total of a row's quantised activations in every lane."""
        at = T.cast(self.first + row, "int64") * self.plan.scale_groups + group
        return vector.splat(self.memory.totals[self.memory.at("totals", at)])

    def steps(self, first: Expr, count: Expr, emit: Callable[[Expr], None]) -> None:
        """Emit ``count`` steps from ``first`` on, unrolled as planned."""
        fixed = isinstance(count, int)
        unroll = min(self.plan.unroll, count) if fixed else self.plan.unroll
        whole = count // unroll if fixed else T.truncdiv(count, T.int64(unroll))
        with T.serial(whole) as i:
            start = T.bind(T.cast(i, "int64") * unroll + first)
            for step in range(unroll):
                emit(start + step)
        if fixed:
            for step in range(whole * unroll, count):
                emit(T.bind(first + T.int64(step)))
        elif unroll > 1:
            with T.serial(count - whole * unroll) as i:
                emit(T.bind(T.cast(i, "int64") + first + whole * unroll))


class Engine(ABC):
    """How the weights of one format meet activations on one instruction set."""

    # How activations are stored, a key of `ACTIVATION_BYTES`; what `emit` sums in.
    activation: ClassVar[str]
    sums: ClassVar[str] = "float32"
    # How many steps follow each other by default.
    unroll: ClassVar[int] = 2

    def __init__(self, tile_rows: tuple[int, ...] = ROW_SIZES) -> None:
        """Take the numbers of rows that tiles are made for, beside the most."""
        self.tile_rows = tile_rows

    def row_sizes(self, most: int) -> tuple[int, ...]:
        """Return the numbers of rows that tiles are made for, the most last."""
        return (*(size for size in self.tile_rows if size < most), most)

    def scratch_bytes(self, plan: Plan) -> int:
        """Return the bytes of a thread's own memory."""
        return 0

    def begin(self, plan: Plan, memory: Memory, worker: Expr) -> None:
        """Emit what a thread does before its products: nothing."""
        del plan, memory, worker

    def end(self) -> None:
        """Emit what a thread does after its products: nothing."""
        return

    @abstractmethod
    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product of a slice; return what gives the sums of a row and a group."""

    def finish(self, tile: Tile, value: Expr, row: int, group: int) -> Expr:
        """Return the float32 of a row and a group when all slices are summed."""
        del tile, row, group
        return value
