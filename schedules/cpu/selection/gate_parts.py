"""What the kernels of the learned gate share: projection, norm and rotation of rows in scratch.

Scratch is a float32 row per worker, in the workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.gate_parts import EPSILON, POSITIONS
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows, flat
from wattune.schedules.cpu.selection.across import sum_lanes
from wattune.schedules.program import CACHE_LINE, Tensors

FLOAT = 4


def aligned(floats: int) -> int:
    """Round a number of floats up to whole cache lines."""
    each = CACHE_LINE // FLOAT
    return -(-floats // each) * each


def scratch_of(tensors: Tensors, size: int) -> Any:
    """View the workspace as ``size`` floats."""
    return T.decl_buffer((size,), "float32", data=tensors["workspace"].data, align=CACHE_LINE)


@dataclass(frozen=True)
class Projection:
    """y[r, c] = sum_i x[r, i] * w[i, c]; ``vectors`` of columns of ``tokens`` rows at once."""

    depth: int
    rows: Rows
    vectors: int
    tokens: int

    @property
    def units(self) -> int:
        """Return the units of columns that are summed at once."""
        return max(1, min(self.vectors // self.rows.parts, self.rows.units))

    @property
    def pieces(self) -> int:
        """Return how many pieces the columns fall into."""
        return -(-self.rows.units // self.units)

    def emit(
        self, scratch: Any, x: Sequence[Any], weight: Any, start: Any, piece: Any, y: Sequence[Any]
    ) -> None:
        """Project the rows at ``x`` of scratch with the weight at ``start``, one piece, to ``y``.

        The last piece overlaps the one before where the columns do not come out even.
        """
        rows, units = self.rows, self.units
        column = T.bind(T.min(piece * units, rows.units - units) * rows.unit)
        sums = vector.Registers(-(-self.tokens * units * rows.unit // vector.LANES), "float32")
        places = [(r, u, p) for r in range(self.tokens) for u in range(units) for p in self._parts]
        for at in range(len(places)):
            sums.store(at * rows.lanes, T.broadcast(T.float32(0), rows.lanes))
        with T.serial(self.depth) as i:
            line = T.bind(start + T.cast(i, "int64") * rows.width + column)
            loaded = [rows.load(weight, line + u * rows.unit) for u in range(units)]
            scales = [T.bind(T.broadcast(scratch[at + i], rows.lanes)) for at in x]
            for at, (r, u, p) in enumerate(places):
                total = sums.load(at * rows.lanes, rows.f32)
                found = vector.multiply_add(loaded[u][p], scales[r], total)
                sums.store(at * rows.lanes, found)
        each = [T.bind(sums.load(at * rows.lanes, rows.f32)) for at in range(len(places))]
        for at in range(0, len(places), rows.parts):
            r, u, _ = places[at]
            target = y[r] + column + u * rows.unit
            rows.store_natural(scratch, target, each[at : at + rows.parts])

    @property
    def _parts(self) -> range:
        return range(self.rows.parts)


class Finisher:
    """Finishes rows of a gate's branch in scratch: norm, rotation, a factor."""

    def __init__(self, problem: Any, tensors: Tensors, norm: str, rows: Rows) -> None:
        """Take what the problem has from the kernel's arguments."""
        self._problem, self._rows = problem, rows
        self._weight: Any = rows.bits(tensors[norm]) if problem.norm else None
        self._table: Any = flat(tensors["cos_sin_cache"]) if problem.rope else None
        self._positions = tensors.sizes.get(POSITIONS)

    def emit(self, scratch: Any, at: Any, position: Any, factor: float = 1.0) -> None:
        """Finish the row at ``at``, which belongs to a position."""
        self._scale(scratch, at, factor)
        if self._table is not None:
            last = T.cast(self._positions, "int32") - 1
            self._rotate(scratch, at, T.bind(T.min(position, last)))

    def _scale(self, scratch: Any, at: Any, factor: float) -> None:
        rows = self._rows
        scale: Any = T.float32(factor)
        if self._weight is not None:
            squares = T.broadcast(T.float32(0), rows.lanes)
            for start in range(0, rows.width, rows.lanes):
                value = T.bind(scratch.vload([at + start], rows.f32))
                squares = T.bind(vector.multiply_add(value, value, squares))
            mean = sum_lanes(squares, rows.lanes) * T.float32(1 / rows.width)
            scale = scale / T.sqrt(mean + T.float32(EPSILON))
        elif factor == 1.0:
            return
        each = T.bind(T.broadcast(scale, rows.lanes))
        for start in range(0, rows.width, rows.unit):
            parts = [part * each for part in rows.load_natural(scratch, at + start)]
            if self._weight is not None:
                weights = rows.load(self._weight, start)
                parts = [part * weight for part, weight in zip(parts, weights, strict=True)]
            rows.store_natural(scratch, at + start, [T.bind(part) for part in parts])

    def _rotate(self, scratch: Any, at: Any, position: Any) -> None:
        width = self._rows.width
        half = Rows.fitting("float32", width // 2, self._rows.lanes)
        start = T.bind(T.cast(position, "int64") * width)
        for column in range(0, half.width, half.lanes):
            low_at, high_at = at + column, at + half.width + column
            low, high = (T.bind(scratch.vload([place], half.f32)) for place in (low_at, high_at))
            angles = (start + column, start + half.width + column)
            cos, sin = (T.bind(self._table.vload([place], half.f32)) for place in angles)
            vector.store(scratch, [low_at], low * cos - high * sin)
            vector.store(scratch, [high_at], high * cos + low * sin)


def zero_row(bits: Any, start: Any, rows: Rows) -> None:
    """Store zeros in a row of the rows' dtype."""
    zeros = [T.broadcast(T.float32(0), rows.lanes)] * rows.parts
    for at in range(0, rows.width, rows.unit):
        rows.store(bits, start + at, zeros)


def mean_rows(
    scratch: Any, at: Any, rows: Rows, bits: Any, count: int, row: Callable[[int], Any]
) -> None:
    """Write the mean of ``count`` rows, which start at ``row(i)``, into scratch."""
    factor = T.broadcast(T.float32(1 / count), rows.lanes)
    for column in range(0, rows.width, rows.unit):
        total = rows.load(bits, row(0) + column)
        for i in range(1, count):
            more = rows.load(bits, row(i) + column)
            total = [T.bind(a + b) for a, b in zip(total, more, strict=True)]
        rows.store_natural(scratch, at + column, [T.bind(part * factor) for part in total])
