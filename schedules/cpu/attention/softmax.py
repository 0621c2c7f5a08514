"""The online softmax of a group of rows, on vectors that hold several rows' scores.

    m' = max(m, max of the tile);  p = 2^(s c - m');  l = l 2^(m - m') + sum p

in powers of two: c is scale * log2(e). A lane of l holds a part of its row's sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan

Expr = Any


@dataclass(frozen=True)
class Softmax:
    """Emits the softmax of one kind of row group."""

    plan: Plan
    fold: Fold

    @property
    def factor(self) -> float:
        """Return what a score is multiplied by to be an exponent of two."""
        problem = self.plan.problem
        return math.LOG2_E * (1.0 if problem.soft_cap else problem.scale)

    def emit(
        self,
        scores: Region,
        state: Region,
        factors: Region,
        quanta: Expr,
        keep: Callable[[Expr, Expr], None],
    ) -> None:
        """Give weights to ``keep``; ``factors`` get what earlier sums are multiplied by."""
        lanes = self.plan.lanes
        top = self._over(scores, quanta, float("-inf"), T.max, lambda score, _: score)
        top = self._across_keys(top)
        before = T.bind(state.load(0, lanes))
        after = T.bind(T.max(before, top * math.real(self.factor, lanes)))
        state.store(0, after)
        shrink = math.exp2(T.bind(before - after), lanes)
        factors.store(0, shrink)
        less = T.bind(math.real(0.0, lanes) - after)

        def weigh(score: Expr, at: Expr) -> Expr:
            exponent = vector.multiply_add(score, math.real(self.factor, lanes), less)
            weight = math.exp2(T.bind(exponent), lanes)
            keep(at, weight)
            return weight

        total = self._over(scores, quanta, 0.0, lambda a, b: a + b, weigh)
        state.store(lanes, vector.multiply_add(state.load(lanes, lanes), shrink, total))

    def _over(
        self,
        scores: Region,
        quanta: Expr,
        start: float,
        join: Callable[[Expr, Expr], Expr],
        value: Callable[[Expr, Expr], Expr],
    ) -> Expr:
        """Join the value of all vectors of scores, in one register for each of a quantum."""
        lanes, count = self.plan.lanes, self.plan.quantum(self.fold)
        kind = math.kind("float32", lanes)
        held = vector.Registers(count, "float32")
        slots = [i * vector.LANES for i in range(count)]
        for slot in slots:
            held.store(slot, math.real(start, lanes))
        with T.serial(quanta) as quantum:
            for i, slot in enumerate(slots):
                at = T.bind((quantum * count + i) * lanes)
                found = value(T.bind(scores.load(at, lanes)), at)
                held.store(slot, join(held.load(slot, kind), found))
        parts = [held.load(slot, kind) for slot in slots]
        while len(parts) > 1:
            rest = parts[len(parts) // 2 * 2 :]
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [*(T.bind(join(a, b)) for a, b in pairs), *rest]
        return T.bind(parts[0])

    def _across_keys(self, top: Expr) -> Expr:
        """Return in every lane the maximum of its row's lanes."""
        lanes, keys = self.plan.lanes, self.fold.keys
        # Through a register: TVM would put the value of a step in place of its two uses.
        held, kind = vector.Registers(1, "float32"), math.kind("float32", lanes)
        distance = 1
        while distance < keys:
            held.store(0, top)
            part = T.bind(held.load(0, kind))
            order = [lane ^ distance for lane in range(lanes)]
            top = T.max(part, T.Shuffle([part], order))
            distance *= 2
        held.store(0, top)
        return T.bind(held.load(0, kind))


@dataclass(frozen=True)
class Mask:
    """Hides the keys of a tile that a row does not see, and applies the soft cap."""

    plan: Plan
    fold: Fold

    def soften(self, scores: Region, quanta: Expr) -> None:
        """Replace scores by soft_cap * tanh(scale * score / soft_cap)."""
        problem, lanes = self.plan.problem, self.plan.lanes
        with T.serial(quanta * self.plan.quantum(self.fold)) as i:
            scaled = T.bind(
                scores.load(i * lanes, lanes) * math.real(problem.scale / problem.soft_cap, lanes)
            )
            capped = math.tanh(scaled, lanes) * math.real(problem.soft_cap, lanes)
            scores.store(i * lanes, capped)

    def hide(self, scores: Region, positions: Region, limits: Region, quanta: Expr) -> None:
        """Replace scores by -inf where a position is not below the lane's limit, or too far."""
        plan, lanes, keys = self.plan, self.plan.lanes, self.fold.keys
        limit = T.bind(limits.load(0, lanes))
        with T.serial(quanta * plan.quantum(self.fold)) as i:
            position = positions.load(i * keys, keys)
            if keys == 1:
                position = T.broadcast(position, lanes) if lanes > 1 else position
            elif keys < lanes:
                position = T.Shuffle([position] * self.fold.slots, list(range(lanes)))
            position = T.bind(position)
            seen = position < limit
            if plan.problem.window:
                first = limit - math.integer(plan.problem.window, lanes)
                seen = T.And(seen, position >= first)
            score = scores.load(i * lanes, lanes)
            hidden = math.real(float("-inf"), lanes)
            scores.store(i * lanes, T.Select(seen, score, hidden))
