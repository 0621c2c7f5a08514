"""The softmax of a warp: a reference, the sum of weights and sums of weighted values so far.

Weights are 2^(score - reference). References are the greatest of score + log2(scale of values):
weights times scales are then at most 1, and float16 keeps those down to 2^-34 of the greatest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.quantized_attention.codes import CODE_UNIT
from wattune.schedules.cuda.quantized_attention.plan import PART, QuantizedPlan

Expr = Any
Buffer = Any

# The reference of no key, and the score of a key that is not attended to: its weight is 0 even so.
NONE = -1.0e30
HIDDEN = -3.0e38
# What weights are multiplied by before they become float16, whose largest number is 2^16.
WEIGHT_UNIT = 2.0**14


@dataclass(frozen=True)
class State:
    """What a warp has summed up: for each panel two columns (rows of queries).

    ``sums`` holds, for each panel, 32 channels and pair of octets, four registers of a product;
    ``zeros`` the sums of weights and zeros of each group of value channels, of this lane's tokens
    alone, as are ``totals``.
    """

    plan: QuantizedPlan
    references: Buffer
    totals: Buffer
    zeros: Buffer
    sums: Buffer

    @classmethod
    def begin(cls, plan: QuantizedPlan) -> State:
        """Declare an empty state."""
        panels = plan.panels
        found = cls(
            plan,
            ptx.registers(2 * panels, "float32"),
            ptx.registers(2 * panels, "float32"),
            ptx.registers(2 * panels * plan.cache.groups("v"), "float32"),
            ptx.registers(panels * plan.problem.value_dim // 4, "float32"),
        )
        fill(found.references, 2 * panels, NONE)
        fill(found.totals, 2 * panels, 0.0)
        fill(found.zeros, 2 * panels * plan.cache.groups("v"), 0.0)
        fill(found.sums, panels * plan.problem.value_dim // 4, 0.0)
        return found

    def places(self, panel: int, load: int, pair: int) -> list[Expr]:
        """Return the registers of a product: 16 of the 32 channels ``load`` for a panel."""
        first = panel * self.plan.problem.value_dim // 4 + 8 * load + 4 * pair
        return [self.sums[first + i] for i in range(4)]

    def zero(self, panel: int, group: int, column: int) -> int:
        """Return the register of a sum of weights and zeros."""
        return 2 * (panel * self.plan.cache.groups("v") + group) + column

    def raise_to(self, panel: int, candidates: list[Expr]) -> None:
        """Emit that a panel's references become at least ``candidates`` of any lane."""
        new = ptx.registers(2, "float32")
        for i in range(2):
            ptx.put(new, i, candidates[i])
            for distance in (4, 8, 16):
                ptx.put(new, i, T.max(new[i], ptx.across(new[i], distance)))
        old = [self.references[2 * panel + i] for i in range(2)]
        grown = T.Or(new[0] > old[0], new[1] > old[1])
        with T.If(ptx.ballot(grown) != T.uint32(0)), T.Then():
            self._rescale(panel, new)

    def _rescale(self, panel: int, new: Buffer) -> None:
        plan = self.plan
        factors = ptx.registers(2, "float32")
        for i in range(2):
            at = 2 * panel + i
            ptx.put(new, i, T.max(new[i], self.references[at]))
            ptx.put(factors, i, ptx.exp2(self.references[at] - new[i]))
            ptx.put(self.references, at, new[i])
            ptx.put(self.totals, at, self.totals[at] * factors[i])
            for group in range(plan.cache.groups("v")):
                zero = self.zero(panel, group, i)
                ptx.put(self.zeros, zero, self.zeros[zero] * factors[i])
        first = panel * plan.problem.value_dim // 4
        for i in range(plan.problem.value_dim // 4):
            ptx.put(self.sums, first + i, self.sums[first + i] * factors[i % 2])

    def end_packed(self) -> None:
        """Emit that sums of codes become sums of values, times `WEIGHT_UNIT`."""
        plan = self.plan
        for panel in range(plan.panels):
            for i in range(2):
                for group in range(plan.cache.groups("v")):
                    zero = self.zero(panel, group, i)
                    sum_over_rows(self.zeros, zero)
        for panel in range(plan.panels):
            for load in range(plan.value_loads):
                group = load * PART // plan.problem.group_size
                for pair in range(2):
                    for i, place in enumerate(self.places(panel, load, pair)):
                        zero = self.zeros[self.zero(panel, group, i % 2)]
                        total = place * T.float32(1 / CODE_UNIT) + zero * T.float32(WEIGHT_UNIT)
                        ptx.put_in(place, total)


def sum_over_rows(buffer: Buffer, at: int) -> None:
    """Emit that a register becomes the sum over the lanes of all rows."""
    for distance in (4, 8, 16):
        ptx.put(buffer, at, buffer[at] + ptx.across(buffer[at], distance))


def fill(buffer: Buffer, count: int, value: float) -> None:
    """Emit that registers become a number."""
    for i in range(count):
        ptx.put(buffer, i, T.float32(value))
