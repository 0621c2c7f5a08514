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
from wattune.schedules.cpu.grouped_gemm.layout import VECTOR, ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import Memory, Plan
from wattune.schedules.cpu.vector import Registers

Expr = Any
Buffer = Any

LANES = vector.LANES
F32 = f"float32x{LANES}"
I32 = f"int32x{LANES}"


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
            offset = T.shift_right(at - tile.base, self.shift)
            place = tile.base + self.distance + offset + group * VECTOR
            vector.prefetch(tile.weights, place, level=2)
        elif self.distance:
            vector.prefetch(tile.weights, at + group * VECTOR + self.distance)


@dataclass(frozen=True)
class Tile:
    """Where one product of ``rows`` rows finds its operands.

    ``base`` is the byte of the block in ``weights``; ``first`` the position of the first row,
    ``worker`` the thread; ``ahead`` what is fetched early.
    """

    plan: Plan
    product: ExpertLayout
    memory: Memory
    weights: Buffer
    base: Expr
    first: Expr
    rows: int
    worker: Expr
    ahead: Ahead

    @property
    def groups(self) -> int:
        """Vectors of 16 rows of weights beside each other."""
        return self.product.groups

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
        zero = math.integer(0, LANES) if dtype == "int32" else math.real(0.0, LANES)
        for at in range(0, self.rows * self.groups * LANES, LANES):
            sums.store(at, zero)
        return sums

    def load(self, at: Expr) -> list[Expr]:
        """Bind the vectors of a step at a byte, and ask for those that come later."""
        found = []
        for group in range(self.groups):
            self.ahead.fetch(self, at, group)
            found.append(T.bind(vector.load_bytes(self.weights, at + group * VECTOR)))
        return found

    def floats(self, at: Expr, group: int) -> Expr:
        """Load 16 float32 of the stream."""
        return vector.load_as(self.weights, at + group * VECTOR, "float32", LANES)

    def scale(self, row: Expr) -> Expr:
        """Return the scale of a row of activations in every lane."""
        return vector.splat(self.memory.scales[self.memory.at("scales", self.first + row)])

    def total(self, row: Expr, group: Expr) -> Expr:
        """Return a total of a row's quantised activations in every lane."""
        at = T.cast(self.first + row, "int64") * self.plan.scale_groups + group
        return vector.splat(self.memory.totals[self.memory.at("totals", at)])

    def steps(self, count: int, emit: Callable[[Expr], None]) -> None:
        """Emit ``count`` steps, unrolled as planned."""
        unroll = min(self.plan.unroll, count)
        with T.serial(count // unroll) as i:
            first = T.bind(T.cast(i, "int64") * unroll)
            for step in range(unroll):
                emit(first + step)
        for step in range(count // unroll * unroll, count):
            emit(T.int64(step))


class Engine(ABC):
    """How the weights of one format meet activations on one instruction set."""

    # How activations are stored, a key of `ACTIVATION_BYTES`.
    activation: ClassVar[str]

    def row_sizes(self, most: int) -> tuple[int, ...]:
        """Return the numbers of rows that tiles are made for: powers of two, and the most."""
        return (*(size for size in (1, 2, 4, 8, 16) if size < most), most)

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
        """Emit the product; return what gives the float32 sums of a row and a group."""
