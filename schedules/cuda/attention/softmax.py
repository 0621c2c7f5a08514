"""The online softmax of a warp's rows, on the accumulators of their scores.

    m' = max(m, max of the tile);  p = 2^(s c - m');  l = l 2^(m - m') + sum p

in powers of two: c is scale * log2(e). A lane has two rows and two keys of each tile, by `Side`;
its l counts its own keys only, until `finish`.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.keys import Keys
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import Plan

Expr = Any

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
# Stands for "no key yet" where -inf would make NaN: 2^(NOTHING - m) is 0 for every score m.
NOTHING = -1e38


class Softmax:
    """Maxima and sums of a warp's rows, those of a lane: two of each tile."""

    def __init__(self, plan: Plan, place: Place[Plan]) -> None:
        """Start with no keys."""
        self.plan, self.place, self.side = plan, place, plan.side
        self.tiles = plan.rows // plan.side.rows
        self.m = ptx.registers(2 * self.tiles, "float32")
        self.l = ptx.registers(2 * self.tiles, "float32")
        self.shrink = ptx.registers(2 * self.tiles, "float32")
        self.ends = self._ends()
        self.powers = 0
        for i in range(2 * self.tiles):
            ptx.put(self.m, i, T.float32(NOTHING))
            ptx.put(self.l, i, T.float32(0))

    @property
    def factor(self) -> float:
        """Return what a score is multiplied by to be an exponent of two."""
        problem = self.plan.problem
        return LOG2_E * (1.0 if problem.soft_cap else problem.scale)

    def _ends(self) -> list[Expr]:
        """Return, for each row of the lane, the position after the last one that it sees."""
        plan, place = self.plan, self.place
        if plan.item_tokens == 1:
            return [place.end] * (2 * self.tiles)
        before = place.end - plan.item_tokens + 1
        side, first = self.side, place.first_row + place.warp_row
        rows = [
            first + tile * side.rows + side.row(place.lane, i)
            for tile in range(self.tiles)
            for i in range(2)
        ]
        return [T.bind(before + row // plan.problem.group) for row in rows]

    def emit(self, scores: list[list[Any]], keys: Keys) -> None:
        """Replace scores [key tile][row tile][4] by weights; `shrink` scales earlier sums."""
        element = self.side.element
        if self.plan.problem.soft_cap:
            self._soften(scores)
        self._hide(scores, keys)
        for tile in range(self.tiles):
            for i in range(2):
                row = [(found[tile], element(i, j)) for found in scores for j in range(2)]
                self._row(row, 2 * tile + i)

    def _soften(self, scores: list[list[Any]]) -> None:
        """soft_cap * tanh(x) = soft_cap * (1 - 2 / (1 + e^(2 x)))."""
        cap, scale = self.plan.problem.soft_cap, self.plan.problem.scale
        for found in (s for row in scores for s in row):
            for j in range(4):
                doubled = found[j] * T.float32(2 * LOG2_E * scale / cap)
                ptx.put(found, j, capped(doubled, cap))

    def _hide(self, scores: list[list[Any]], keys: Keys) -> None:
        window = self.plan.problem.window
        for number, found in enumerate(scores):
            for j in range(2):
                key = number * self.side.columns + self.side.column(self.place.lane, j)
                position = T.bind(keys.position(key))
                for tile in range(self.tiles):
                    for i in range(2):
                        end = self.ends[2 * tile + i]
                        seen = T.And(position >= 0, position < end)
                        if window:
                            seen = T.And(seen, position >= end - window)
                        at = self.side.element(i, j)
                        hidden = T.float32(float("-inf"))
                        ptx.put(found[tile], at, T.Select(seen, found[tile][at], hidden))

    def _row(self, scores: list[tuple[Any, int]], row: int) -> None:
        """Emit one row of the lane: its scores among this lane's keys."""
        top = ptx.registers(1, "float32")
        ptx.put(top, 0, scores[0][0][scores[0][1]])
        for found, j in scores[1:]:
            ptx.put(top, 0, T.max(top[0], found[j]))
        for distance in self.side.apart:
            ptx.put(top, 0, T.max(top[0], ptx.across(top[0], distance)))
        after = T.bind(T.max(self.m[row], top[0] * T.float32(self.factor)))
        ptx.put(self.shrink, row, ptx.exp2(self.m[row] - after))
        ptx.put(self.m, row, after)
        ptx.put(self.l, row, self.l[row] * self.shrink[row])
        for found, j in scores:
            exponent = found[j] * T.float32(self.factor) - self.m[row]
            ptx.put(found, j, self._power(exponent))
            ptx.put(self.l, row, self.l[row] + found[j])

    def _power(self, exponent: Expr) -> Expr:
        """Return 2^exponent, of each four so many by a polynomial as the schedule asks for."""
        self.powers += 1
        return power(exponent, self.powers, self.plan.polynomial)

    def finish(self) -> None:
        """Add up the sums of lanes that share rows."""
        for row in range(2 * self.tiles):
            for distance in self.side.apart:
                ptx.put(self.l, row, self.l[row] + ptx.across(self.l[row], distance))


def power(exponent: Expr, number: int, polynomial: int) -> Expr:
    """Return 2^exponent, the ``number``-th of them: ``polynomial`` of each four by products."""
    by_products = number % 4 < polynomial
    return ptx.exp2_by_products(exponent) if by_products else ptx.exp2(exponent)


def capped(doubled: Expr, cap: float) -> Expr:
    """Return cap * tanh(x), given 2 x log2(e)."""
    return T.float32(cap) - T.float32(2 * cap) / (T.float32(1) + ptx.exp2(doubled))
