"""Template of `moe_topk`: choices, the best of them, their weights, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.dtypes import itemsize
from wattune.ops.moe_topk import MoeTopk
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.cpu.routing.loads import Loads, stored
from wattune.schedules.cpu.routing.router import Router
from wattune.schedules.cpu.routing.spaces import counts_of, knobs_of, plan_of, rules_of
from wattune.schedules.cpu.rows import flat
from wattune.schedules.program import Tensors
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class MoeTopkVector(PlainTemplate):
    """Vectors of any width, for any target that LLVM knows."""

    name = "moe_topk_vector"
    operator = "moe_topk"

    def applies(self, problem: MoeTopk, target: Target) -> bool:
        """Say whether half precision needs no library."""
        return problem.dtype != "float16" or target.arch != "x86_64" or target.has("f16c")

    def space(self, problem: MoeTopk, target: Target) -> Space:
        """Knobs: lanes, vectors of maxima for a bound (0: none), tokens together and alone."""
        return Space(self.name, knobs_of(problem, target), rules_of(problem))

    def sizes(
        self, problem: MoeTopk, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of every thread's rows."""
        return {"workspace_bytes": plan_of(problem, target, values).bytes}

    def body(
        self, problem: MoeTopk, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        plan = plan_of(problem, target, values)

        def emit(tensors: Tensors) -> None:
            rows = flat(tensors["gating_output"], stored(problem.dtype))
            logits = Loads(rows, problem.dtype, problem.num_experts, plan.lanes)
            Router(
                plan,
                tensors["workspace"],
                0,
                tensors.get("e_score_correction_bias"),
                flat(tensors["topk_weights"]),
                flat(tensors["topk_ids"]),
                logits.load,
            ).emit(tensors.sizes["tokens"])

        return emit

    def counts(self, problem: MoeTopk, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count the vector operations of every step."""
        moved = float(problem.tokens * problem.num_experts * itemsize(problem.dtype))
        return counts_of(plan_of(problem, target, values), moved)
