"""What experts are chosen by: scores, a bias, the groups that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes
from wattune.schedules.cpu.routing.groups import Groups, Pair
from wattune.schedules.cpu.routing.plan import Plan, Rows
from wattune.schedules.cpu.routing.ranks import ranks

Expr = Any
Buffer = Any

LEAST = -3.4028234663852886e38
# Powers of two beyond add nothing to 1, or make a score of nothing.
_MOST_POWER = 126.0
# Vectors of a row in one turn of a loop.
_TOGETHER = 4


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

    def emit(self, load: Callable[[Expr], Expr]) -> None:
        """Write the choices, and the sum of the softmax's weights where a score needs it."""

        def clean(at: Expr) -> Expr:
            return T.bind(self._real(at, load(at)))

        if self.bias is not None and not self.softmax:
            self._each(lambda at: self._add_bias(at, T.bind(load(at))))
        else:
            self._each(lambda at: self.rows.put("choices", at * self.lanes.count, clean(at)))
        if self.needs_total:
            self.rows.put("total", 0, self._weigh())
            if self.bias is not None:
                self._each(lambda at: self._add_bias(at, T.bind(self.choice(at))))
        if self.plan.routing.grouped:
            self._keep_groups()

    def _each(self, emit: Callable[[Expr], None]) -> None:
        """Emit code for every vector of a row, for a few of them in each turn of a loop.

        Beyond that LLVM mixes what belongs to many vectors, for which there are no registers.
        """
        turns = self.plan.routing.num_experts // self.lanes.count // _TOGETHER
        if turns > 1:
            with T.serial(turns) as turn:
                for part in range(_TOGETHER):
                    emit(T.bind(turn * _TOGETHER + part))
        for at in range(turns * _TOGETHER if turns > 1 else 0, self.plan.vectors):
            emit(at)

    def choice(self, at: Expr) -> Expr:
        """Load a vector of choices."""
        return self.rows.numbers("choices", at * self.lanes.count, self.lanes.f32)

    def _real(self, at: Expr, logits: Expr) -> Expr:
        """Return logits, -inf for what is no number and beyond the last expert."""
        lanes = self.lanes
        logits = T.bind(logits)
        # Not `equal`: TVM takes it that x equals x.
        most = lanes.each(INFINITY)
        right = logits < most if self.softmax else logits <= most
        found = T.Select(right, T.max(logits, lanes.each(LEAST)), lanes.each(-INFINITY))
        return self._within(at, T.bind(found))

    def _within(self, at: Expr, values: Expr) -> Expr:
        """Replace lanes beyond the last expert by -inf; only a last vector's number is known."""
        if not isinstance(at, int):
            return values
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

    def _add_bias(self, at: Expr, logits: Expr) -> None:
        """Write a vector of scores, and their sums with the bias as choices."""
        lanes, start = self.lanes, at * self.lanes.count
        if not self.softmax:
            score = sigmoid(logits, lanes.count)
        else:
            weight = self.rows.numbers("scores", start, lanes.f32)
            total = T.max(self.rows.numbers("total", 0, "float32"), T.float32(1e-30))
            score = T.bind(weight / lanes.splat(total))
        self.rows.put("scores", start, score)
        biased = T.bind(score + self._bias(start))
        # NaN of a bias or of a logit. Of a softmax's logits those that are none are -inf by now.
        number = logits > lanes.each(-INFINITY) if self.softmax else logits <= lanes.each(INFINITY)
        right = T.bitwise_and(biased <= lanes.each(INFINITY), number)
        found = T.Select(right, biased, lanes.each(-INFINITY))
        self.rows.put("choices", start, self._within(at, T.bind(found)))

    def _bias(self, start: Expr) -> Expr:
        """Load a vector of the bias; what lies beyond its end does not matter."""
        assert self.bias is not None
        lanes, experts = self.lanes, self.plan.routing.num_experts
        if not isinstance(start, int) or start + lanes.count <= experts:
            return self.bias.vload([start], lanes.f32)
        last = vector.array(lanes.count, "float32")
        for lane in range(lanes.count):
            vector.store(last, [lane], self.bias[min(start + lane, experts - 1)])
        return last.vload([0], lanes.f32)

    def _keep_groups(self) -> None:
        """Write -inf into the choices of groups that are left out."""
        routing, lanes = self.plan.routing, Lanes(self.group_lanes)
        vectors, groups = routing.group_size // lanes.count, routing.num_expert_group
        count = -(-groups // self.lanes.count)
        parts = Groups(lanes, self.bias is not None)
        found = (self._best_two(lanes, group, vectors) for group in range(groups))
        if lanes == self.lanes and groups <= lanes.count and groups & (groups - 1) == 0:
            self.rows.put("groups", 0, parts.values_of(list(found)))
        else:
            for group, pair in enumerate(found):
                self.rows.put("groups", group, parts.value_of(pair))
        ranked = ranks(self.rows, "groups", count, self.lanes, entries=groups)
        for at, rank in enumerate(ranked):
            kept = rank < self.lanes.each_int(routing.topk_group)
            most = T.Select(kept, self.lanes.each(INFINITY), self.lanes.each(-INFINITY))
            self.rows.put("groups", at * self.lanes.count, most)
        kind = math.kind("float32", lanes.count)
        for group in range(groups):
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

    def _best_two(self, lanes: Lanes, group: int, vectors: int) -> Pair:
        """Return the two greatest choices of a group, lane by lane."""
        kind = math.kind("float32", lanes.count)
        start = group * self.plan.routing.group_size
        first = T.bind(self.rows.numbers("choices", start, kind))
        second = math.real(-INFINITY, lanes.count)
        for at in range(1, vectors):
            value = T.bind(self.rows.numbers("choices", start + at * lanes.count, kind))
            second = T.bind(T.max(second, T.min(first, value)))
            first = T.bind(T.max(first, value))
        return first, second


def softmax_weight(logits: Expr, top: Expr, lanes: Lanes) -> Expr:
    """Return exp(logit - top), 0 for logits that stand for -inf."""
    less = T.bind((logits - lanes.splat(top)) * lanes.each(math.LOG2_E))
    weight = math.exp2(less, lanes.count)
    return T.bind(T.Select(logits > lanes.each(LEAST), weight, lanes.each(0.0)))


def sigmoid(x: Expr, lanes: int) -> Expr:
    """Return 1 / (1 + exp(-x)), 2^-126 for -inf and the least number; anything for NaN."""
    power = T.bind(x * math.real(-math.LOG2_E, lanes))
    most, least = math.real(_MOST_POWER, lanes), math.real(-_MOST_POWER, lanes)
    power = T.bind(T.Select(power > most, most, power))
    power = T.bind(T.Select(power < least, least, power))
    one = math.real(1.0, lanes)
    return T.bind(one / (one + math.exp2_between(power, lanes)))
