"""Sizes of a gate kernel: the packed weight, and each thread's rows and sums in the workspace.

    weight  [part][tile][step][row]: vectors of ``lanes`` columns; a tile is ``rows`` experts
    rows    [group][step][token]: vectors of float32; a group is ``tokens`` tokens
    sums    [tile][group][token][row]: vectors, where columns are taken in parts

Padding is zero, in experts, tokens and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattune.ops.dtypes import itemsize
from wattune.ops.moe_gate import MoeGate
from wattune.schedules.areas import Areas


@dataclass(frozen=True)
class GatePlan:
    """``rows`` experts and ``tokens`` tokens are multiplied at once, ``lanes`` columns a step.

    ``groups`` of tokens are held as float32 while all experts pass by. ``depth`` is the steps of a
    part of the columns, 0 for all of them. ``prefetch``: bytes of weight ahead.
    """

    problem: MoeGate
    threads: int
    lanes: int
    rows: int
    tokens: int
    groups: int
    depth: int
    prefetch: int
    unroll: int

    @property
    def steps(self) -> int:
        """Return the vectors of a row."""
        return -(-self.problem.hidden_size // self.lanes)

    @property
    def parts(self) -> int:
        """Return the parts of the columns; the last one may be shorter."""
        return -(-self.steps // self.depth) if self.depth else 1

    @property
    def tiles(self) -> int:
        """Return the tiles of experts."""
        return -(-self.problem.num_experts // self.rows)

    @property
    def block(self) -> int:
        """Return the tokens that are held as float32."""
        return self.tokens * self.groups

    @property
    def group_values(self) -> int:
        """Return the values of a group of tokens."""
        return self.steps * self.tokens * self.lanes

    @property
    def step_values(self) -> int:
        """Return the values of a tile's step."""
        return self.rows * self.lanes

    @property
    def sums(self) -> int:
        """Return the values of the sums of a tile and a group."""
        return self.tokens * self.rows * self.lanes

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the packed weight."""
        return self.tiles * self.steps * self.step_values * itemsize(self.problem.weight_dtype)

    @property
    def areas(self) -> Areas:
        """Lay out one thread's part of the workspace."""
        sums = self.tiles * self.groups * self.sums if self.parts > 1 else 0
        return Areas.of(rows=4 * self.groups * self.group_values, sums=4 * sums)

    @property
    def bytes(self) -> int:
        """Return the bytes of the workspace."""
        return self.threads * self.areas.bytes
