"""The way of tokens from logits to experts and weights, spread over threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.routing import EPSILON
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes
from wattune.schedules.cpu.routing import bits
from wattune.schedules.cpu.routing.best import Best
from wattune.schedules.cpu.routing.choices import Choices, sigmoid, softmax_weight
from wattune.schedules.cpu.routing.plan import Plan, Rows
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Router:
    """Emits the routing of tokens; ``weights`` and ``ids`` are flat outputs.

    ``load`` gives the logits of a token, a vector after the other, as fp32.
    """

    plan: Plan
    workspace: Buffer
    start: int
    bias: Buffer | None
    weights: Buffer
    ids: Buffer
    load: Callable[[Expr, Expr], Expr]

    def emit(self, tokens: Expr) -> None:
        """Route all tokens: a range of neighbours for each thread, a block after the other.

        Few tokens take less time than starting threads.
        """
        with bits.functions(self.plan.lanes):
            self._all(T.bind(T.cast(tokens, "int32")))

    def _all(self, count: Expr) -> None:
        plan = self.plan
        if plan.threads == 1 or plan.routing.tokens <= plan.grain:
            self._range(T.int32(0), T.int32(0), count)
            return
        with T.If(count <= plan.grain):
            with T.Then():
                self._range(T.int32(0), T.int32(0), count)
            with T.Else(), T.parallel(plan.threads) as worker:
                first, end = (
                    T.bind(T.truncdiv(count * (worker + i), plan.threads)) for i in range(2)
                )
                self._range(worker, first, end)

    def _range(self, worker: Expr, first: Expr, end: Expr) -> None:
        """Route tokens ``first`` to ``end``: every step for a block of them, then the next one."""
        block = self.plan.block
        with T.serial(ceildiv(end - first, block)) as step:
            start = T.bind(first + step * block)
            count = T.bind(T.min(end - start, block))
            for number in range(len(self._steps(T.int32(0), T.int32(0)))):
                with T.serial(count) as i:
                    self._steps(worker * block + i, T.bind(start + i))[number]()

    def _steps(self, which: Expr, token: Expr) -> tuple[Callable[[], None], ...]:
        """Return what emits the steps for a token, whose rows are number ``which``."""
        rows = Rows(self.plan, self.workspace, self.start, which)
        choices = Choices(self.plan, rows, self.bias)
        weights = Weights(self.plan, rows, choices, self.weights, self.ids, token)
        return (
            lambda: choices.emit(lambda at: self.load(token, at)),
            *Best(self.plan, rows).steps(),
            *((weights.gather,) if self.bias is not None else ()),
            weights.emit,
        )


@dataclass(frozen=True)
class Weights:
    """Emits the weights of a token's experts, once these are found."""

    plan: Plan
    rows: Rows
    choices: Choices
    weights: Buffer
    ids: Buffer
    token: Expr

    @property
    def lanes(self) -> Lanes:
        """Return the vectors of experts."""
        return Lanes(self.plan.lanes)

    def gather(self) -> None:
        """Write the scores of what is chosen one behind the other.

        A step of its own: vectors of what has just been stored in parts are slow to load.
        """
        for place in range(self.plan.routing.top_k):
            expert = self.rows.integers("best_ids", place, "int32")
            self.rows.put("best_scores", place, self.rows.numbers("scores", expert, "float32"))

    def emit(self) -> None:
        """Write weights and ids."""
        routing = self.plan.routing
        start = T.bind(T.cast(self.token, "int64") * routing.top_k)
        self.rows.put("top", 0, self.rows.numbers("best", 0, "float32"))
        parts = [self._weight(at) for at in range(0, routing.top_k, self.lanes.count)]
        factor = T.bind(self.lanes.splat(self._factor(parts)))
        for at, part in zip(range(0, routing.top_k, self.lanes.count), parts, strict=True):
            weights = T.bind(part * factor)
            ids = T.bind(self.rows.integers("best_ids", at, self.lanes.i32))
            self._store(self.weights, start, at, weights)
            self._store(self.ids, start, at, ids)

    def _store(self, buffer: Buffer, start: Expr, at: int, values: Expr) -> None:
        """Store a vector, or as much of it as belongs to the token."""
        rest = min(self.lanes.count, self.plan.routing.top_k - at)
        while rest:
            width = 1 << rest.bit_length() - 1
            done = min(self.lanes.count, self.plan.routing.top_k - at) - rest
            part = T.Shuffle([values], list(range(done, done + width)))
            vector.store(buffer, [start + at + done], part)
            rest -= width

    def _weight(self, at: int) -> Expr:
        """Return the weights of a vector of what is chosen: 0 where nothing could be."""
        lanes, top_k = self.lanes, self.plan.routing.top_k
        choices = T.bind(self.rows.numbers("best", at, lanes.f32))
        if self.choices.bias is not None:
            found = self.rows.numbers("best_scores", at, lanes.f32)
        elif self.plan.routing.scoring_func == "softmax":
            found = softmax_weight(choices, self.rows.numbers("top", 0, "float32"), lanes)
        else:
            found = sigmoid(choices, lanes.count)
        chosen = T.Select(choices > lanes.each(-INFINITY), found, lanes.each(0.0))
        if at + lanes.count > top_k:
            chosen = T.Select(lanes.below(T.int32(top_k - at)), chosen, lanes.each(0.0))
        return T.bind(chosen)

    def _factor(self, parts: list[Expr]) -> Expr:
        """Return what weights are multiplied by: the scale over what they must sum to."""
        routing = self.plan.routing
        scale = T.float32(routing.routed_scaling_factor)
        if routing.renormalize:
            sums = parts[0]
            for part in parts[1:]:
                sums = T.bind(sums + part)
            return T.bind(scale / (self.lanes.total_real(sums) + T.float32(EPSILON)))
        if not self.choices.needs_total or self.choices.bias is not None:
            return scale
        total = self.rows.numbers("total", 0, "float32")
        return T.bind(scale / T.max(total, T.float32(1e-30)))
