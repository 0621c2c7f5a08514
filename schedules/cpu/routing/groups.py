"""Values of groups of experts, from the two greatest choices of each group in each lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm.script import tirx as T

from wattune.schedules.cpu.lanes import Lanes

Expr = Any
# The greatest choices, and the greatest beside them.
Pair: TypeAlias = tuple[Expr, Expr]


@dataclass(frozen=True)
class Groups:
    """Emits values: the sum of the two greatest choices if ``two`` are, or the greatest one."""

    lanes: Lanes
    two: bool

    def value_of(self, pair: Pair) -> Expr:
        """Return the value of one group."""
        width = self.lanes.count
        while width > 1:
            pair = self._across(pair, pair)
            width //= 2
        if self.lanes.count > 1:
            pair = (T.bind(T.Shuffle([pair[0]], [0])), T.bind(T.Shuffle([pair[1]], [0])))
        return self._value(pair)

    def values_of(self, pairs: list[Pair]) -> Expr:
        """Return the values of a power of two groups, at most a vector, and again beyond them.

        rewrite: a tree for each group -> lanes of two groups in one vector at each step
        """
        width = self.lanes.count
        while width > 1:
            if len(pairs) > 1:
                pairs = [self._across(*pairs[i : i + 2]) for i in range(0, len(pairs), 2)]
            else:
                pairs = [self._across(pairs[0], pairs[0])]
            width //= 2
        return T.bind(self._value(pairs[0]))

    def _value(self, pair: Pair) -> Expr:
        return pair[0] + pair[1] if self.two else pair[0]

    def _across(self, left: Pair, right: Pair) -> Pair:
        """Combine neighbouring lanes: those of ``left`` become the lower half, then ``right``'s."""
        first, other = self._neighbours(left[0], right[0])
        second, next_other = self._neighbours(left[1], right[1])
        second = T.bind(T.max(T.min(first, other), T.max(second, next_other)))
        return T.bind(T.max(first, other)), second

    def _neighbours(self, left: Expr, right: Expr) -> Pair:
        """Return the even and the odd lanes of two vectors."""
        places = (list(range(odd, 2 * self.lanes.count, 2)) for odd in range(2))
        even, odd = (T.bind(T.Shuffle([left, right], place)) for place in places)
        return even, odd
