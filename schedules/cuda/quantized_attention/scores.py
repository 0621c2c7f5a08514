"""From sums of products to scores: units, the soft cap, and which keys a query sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.softmax import LOG2_E, capped
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cuda.quantized_attention.softmax import HIDDEN
from wattune.schedules.cuda.quantized_attention.tiles import Request

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Scores:
    """Emits the scores of a request's keys; ``ends`` are, for each column, where its keys end."""

    plan: QuantizedPlan
    request: Request
    ends: Buffer

    @classmethod
    def of(cls, plan: QuantizedPlan, place: Place, request: Request) -> Scores:
        """Find where the keys of each column's query token end."""
        problem = plan.problem
        ends = ptx.registers(2 * plan.panels, "int32")
        for panel in range(plan.panels):
            for i in range(2):
                row = place.query_row(panel, 2 * place.column + i)
                token = T.truncdiv(row, problem.group)
                before = problem.query_tokens - 1
                end = T.min(request.length - before + token, request.length)
                ptx.put(ends, 2 * panel + i, end)
        return cls(plan, request, ends)

    def finish(self, score: Expr) -> Expr:
        """Return a score in logarithms to base 2, after the soft cap."""
        cap = self.plan.problem.soft_cap
        if not cap:
            return score
        return capped(score * T.float32(2 / cap), cap * LOG2_E)

    def seen_by_all(self, start: Expr, end: Expr) -> Expr:
        """Say whether every query sees all positions from start to end."""
        problem = self.plan.problem
        seen = end <= self.request.length - (problem.query_tokens - 1)
        if problem.window:
            seen = T.And(seen, start >= self.request.length - problem.window)
        return seen

    def hide(self, scores: list[Buffer], at: int, position: Expr, seen: Expr) -> None:
        """Emit that octet ``at``'s scores are hidden from queries that do not see the position.

        ``seen``: whether any does.
        """
        problem = self.plan.problem
        for panel, score in enumerate(scores):
            for i in range(2):
                # Bound, since TVM takes minutes to simplify comparisons of registers.
                end = T.bind(self.ends[2 * panel + i])
                shown = T.And(seen, T.bind(position < end))
                if problem.window:
                    shown = T.And(shown, T.bind(position >= end - problem.window))
                old = score[2 * at + i]
                ptx.put(score, 2 * at + i, T.Select(shown, old, T.float32(HIDDEN)))
