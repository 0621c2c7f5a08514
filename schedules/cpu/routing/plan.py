"""Sizes of a routing kernel, and where each token's rows lie in the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.routing import Routing
from wattune.schedules.areas import Areas, round_up
from wattune.schedules.cpu.routing import bits

Buffer = Any
Expr = Any

# Lists are ranked up to this many entries, and up to twice those that are wanted.
_RANKED = 16


@dataclass(frozen=True)
class Plan:
    """``lanes`` of a vector; ``groups`` vectors of maxima for a bound, 0 for none.

    ``block`` tokens go through every step together: a step of one waits for the one before.
    ``grain`` is the tokens that one thread takes before others are asked. ``compress``: lists are
    made by vectors that move some lanes to the front, not bit by bit.
    """

    routing: Routing
    lanes: int
    groups: int
    block: int
    grain: int
    threads: int
    compress: bool = False

    @property
    def vectors(self) -> int:
        """Return the vectors of a row of experts."""
        return -(-self.routing.num_experts // self.lanes)

    @property
    def ranked(self) -> int:
        """Return how many entries of a list are ranked, the bits of a word at most.

        Longer lists are searched.
        """
        wanted = round_up(max(_RANKED, 2 * self.routing.top_k), self.lanes)
        return min(bits.WORD, wanted) if self.groups else 0

    @property
    def chosen(self) -> int:
        """Return the places of the results, those of a last vector included."""
        return max(round_up(self.routing.top_k, self.lanes), self.ranked)

    @property
    def areas(self) -> Areas:
        """Lay out a token's rows: choices, scores, the list, what is chosen."""
        row = 4 * self.vectors * self.lanes
        listed = max(row + 4 * self.lanes, 4 * self.ranked)
        groups = 4 * round_up(self.routing.num_expert_group, self.lanes)
        return Areas.of(
            choices=row,
            scores=row if self.routing.e_score_correction_bias else 0,
            values=listed,
            ids=listed,
            best=4 * self.chosen,
            best_ids=4 * self.chosen,
            best_scores=4 * self.chosen if self.routing.e_score_correction_bias else 0,
            groups=groups if self.routing.grouped else 0,
            maxima=4 * self.groups * self.lanes,
            total=4,
            top=4,
            size=4,
        )

    @property
    def bytes(self) -> int:
        """Return the bytes of all threads' rows."""
        return self.threads * self.block * self.areas.bytes


class Rows:
    """The rows of one of a thread's tokens in the workspace, by name."""

    def __init__(self, plan: Plan, workspace: Buffer, start: int, which: Expr) -> None:
        """View the workspace from byte ``start`` on as numbers."""
        entries = (start + plan.bytes) // 4
        self._numbers = T.decl_buffer((entries,), "float32", data=workspace.data)
        self._integers = T.decl_buffer((entries,), "int32", data=workspace.data)
        self._areas = plan.areas
        self._base = T.bind(start // 4 + T.cast(which, "int64") * (plan.areas.bytes // 4))

    def at(self, name: str, index: Expr) -> Expr:
        """Return the place of an entry of a row."""
        return self._base + (self._areas.starts[name] // 4 + index)

    def numbers(self, name: str, index: Expr, dtype: str) -> Expr:
        """Load float32."""
        return self._numbers.vload([self.at(name, index)], dtype)

    def integers(self, name: str, index: Expr, dtype: str) -> Expr:
        """Load int32."""
        return self._integers.vload([self.at(name, index)], dtype)

    def put(self, name: str, index: Expr, value: Expr) -> None:
        """Store a number or a vector of them."""
        dtype = str(value.ty.dtype)
        buffer = self._integers if dtype.startswith("int32") else self._numbers
        at, lanes = self.at(name, index), value.ty.dtype.lanes
        T.buffer_store(buffer, value, [at if lanes == 1 else T.ramp(at, 1, lanes)])
