"""What experts are chosen by: scores, a bias, the groups that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes
from wattune.schedules.cpu.routing.plan import Plan, Rows
from wattune.schedules.cpu.routing.ranks import ranks

Expr = Any
Buffer = Any

LEAST = -3.4028234663852886e38


@dataclass(frozen=True)
class Choices:
    """Emits the choices of a token; ``load`` gives the logits of a vector as fp32."""

    plan: Plan
    rows: Rows
    bias: Buffer | None

    @property
    def lanes(self) -> Lanes:
        """Return the vectors of experts."""
        return Lanes(self.plan.lanes)

    @property
    def softmax(self) -> bool:
        """Say whether scores are a softmax."""
        return self.plan.routing.scoring_func == "softmax"

    @property
    def needs_total(self) -> bool:
        """Say whether a score needs the sum over all experts."""
        return self.softmax and (self.bias is not None or not self.plan.routing.renormalize)

    def emit(self, load: Callable[[int], Expr]) -> None:
        """Write the choices, and the sum of the softmax's weights where a score needs it."""
        for at in range(self.plan.vectors):
            self.rows.put("choices", at * self.lanes.count, self._real(at, load(at)))
        if self.needs_total:
            self.rows.put("total", 0, self._weigh())
        if self.bias is not None:
            for at in range(self.plan.vectors):
                self._add_bias(at)
        if self.plan.routing.grouped:
            self._keep_groups()

    def choice(self, at: int) -> Expr:
        """Load a vector of choices."""
        return self.rows.numbers("choices", at * self.lanes.count, self.lanes.f32)

    def _real(self, at: int, logits: Expr) -> Expr:
        """Return logits, -inf for what is no number and beyond the last expert."""
        lanes = self.lanes
        logits = T.bind(logits)
        # Not `equal`: TVM takes it that x equals x.
        most = lanes.each(INFINITY)
        right = logits < most if self.softmax else logits <= most
        found = T.Select(right, T.max(logits, lanes.each(LEAST)), lanes.each(-INFINITY))
        return self._within(at, T.bind(found))

    def _within(self, at: int, values: Expr) -> Expr:
        """Replace lanes beyond the last expert by -inf."""
        rest = self.plan.routing.num_experts - at * self.lanes.count
        if rest >= self.lanes.count:
            return values
        return T.Select(self.lanes.below(T.int32(rest)), values, self.lanes.each(-INFINITY))

    def _weigh(self) -> Expr:
        """Return sum exp(logit - greatest)."""
        lanes = self.lanes
        top = vector.array(lanes.count, "float32")
        vector.store(top, [0], lanes.each(LEAST))
        for at in range(self.plan.vectors):
            vector.store(top, [0], T.max(self.choice(at), top.vload([0], lanes.f32)))
        self.rows.put("top", 0, lanes.greatest(top.vload([0], lanes.f32)))
        sums = vector.array(lanes.count, "float32")
        vector.store(sums, [0], lanes.each(0.0))
        for at in range(self.plan.vectors):
            weight = softmax_weight(T.bind(self.choice(at)), self._top(), lanes)
            if self.bias is not None:
                self.rows.put("scores", at * lanes.count, weight)
            vector.store(sums, [0], sums.vload([0], lanes.f32) + weight)
        return T.bind(lanes.total_real(sums.vload([0], lanes.f32)))

    def _top(self) -> Expr:
        return self.rows.numbers("top", 0, "float32")

    def _add_bias(self, at: int) -> None:
        """Write a vector of scores, and their sums with the bias as choices."""
        lanes, start = self.lanes, at * self.lanes.count
        logits = T.bind(self.choice(at))
        if not self.softmax:
            score = sigmoid(logits, lanes.count)
        else:
            weight = self.rows.numbers("scores", start, lanes.f32)
            total = T.max(self.rows.numbers("total", 0, "float32"), T.float32(1e-30))
            score = T.bind(weight / lanes.splat(total))
        self.rows.put("scores", start, score)
        biased = T.bind(score + self._bias(start))
        # NaN of a bias, and what was no number before.
        right = T.bitwise_and(biased <= lanes.each(INFINITY), logits > lanes.each(-INFINITY))
        self.rows.put("choices", start, T.Select(right, biased, lanes.each(-INFINITY)))

    def _bias(self, start: int) -> Expr:
        """Load a vector of the bias; what lies beyond its end does not matter."""
        assert self.bias is not None
        lanes, experts = self.lanes, self.plan.routing.num_experts
        if start + lanes.count <= experts:
            return self.bias.vload([start], lanes.f32)
        last = vector.array(lanes.count, "float32")
        for lane in range(lanes.count):
            vector.store(last, [lane], self.bias[min(start + lane, experts - 1)])
        return last.vload([0], lanes.f32)

    def _keep_groups(self) -> None:
        """Write -inf into the choices of groups that are left out."""
        routing = self.plan.routing
        lanes = Lanes(self.group_lanes)
        vectors = routing.group_size // lanes.count
        count = -(-routing.num_expert_group // self.lanes.count)
        for at in range(count):
            self.rows.put("groups", at * self.lanes.count, self.lanes.each(-INFINITY))
        for group in range(routing.num_expert_group):
            self.rows.put("groups", group, self._group_value(lanes, group, vectors))
        found = ranks(self.rows, "groups", count, self.lanes)
        for at, rank in enumerate(found):
            kept = rank < self.lanes.each_int(routing.topk_group)
            most = T.Select(kept, self.lanes.each(INFINITY), self.lanes.each(-INFINITY))
            self.rows.put("groups", at * self.lanes.count, most)
        kind = math.kind("float32", lanes.count)
        for group in range(routing.num_expert_group):
            most = T.bind(self.rows.numbers("groups", group, "float32"))
            for at in range(vectors):
                start = group * routing.group_size + at * lanes.count
                values = self.rows.numbers("choices", start, kind)
                every = most if lanes.count == 1 else lanes.splat(most)
                self.rows.put("choices", start, T.min(values, every))

    @property
    def group_lanes(self) -> int:
        """Return the most lanes that groups are whole vectors of."""
        lanes = self.plan.lanes
        while self.plan.routing.group_size % lanes:
            lanes //= 2
        return lanes

    def _group_value(self, lanes: Lanes, group: int, vectors: int) -> Expr:
        """Return the sum of a group's two greatest choices, or the greatest one."""
        kind = math.kind("float32", lanes.count)
        start = group * self.plan.routing.group_size
        first = T.bind(self.rows.numbers("choices", start, kind))
        second = math.real(-INFINITY, lanes.count)
        for at in range(1, vectors):
            value = T.bind(self.rows.numbers("choices", start + at * lanes.count, kind))
            second = T.bind(T.max(second, T.min(first, value)))
            first = T.bind(T.max(first, value))
        width = lanes.count
        while width > 1:
            width //= 2
            order = [lane % (2 * width) for lane in range(width, width + lanes.count)]
            other, next_other = (T.bind(T.Shuffle([part], order)) for part in (first, second))
            second = T.bind(T.max(T.min(first, other), T.max(second, next_other)))
            first = T.bind(T.max(first, other))
        if lanes.count > 1:
            first, second = (T.bind(T.Shuffle([part], [0])) for part in (first, second))
        return first if self.bias is None else first + second


def softmax_weight(logits: Expr, top: Expr, lanes: Lanes) -> Expr:
    """Return exp(logit - top), 0 for logits that stand for -inf."""
    less = T.bind((logits - lanes.splat(top)) * lanes.each(math.LOG2_E))
    weight = math.exp2(less, lanes.count)
    return T.bind(T.Select(logits > lanes.each(LEAST), weight, lanes.each(0.0)))


def sigmoid(x: Expr, lanes: int) -> Expr:
    """Return 1 / (1 + exp(-x)); 0 for -inf and the least number."""
    size = T.bind(T.max(x, math.real(0.0, lanes) - x))
    small = math.exp2(T.bind(size * math.real(-math.LOG2_E, lanes)), lanes)
    one = math.real(1.0, lanes)
    return T.bind(T.Select(x < math.real(0.0, lanes), small, one) / (one + small))
