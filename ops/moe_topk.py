"""Route tokens to experts: the ``top_k`` best of each token's scores, and their weights.

Sources: noaux_tc of DeepSeek-V3 (arXiv 2412.19437), which MiMo-V2-Flash uses with one group; the
softmax routers of Mixtral and Qwen3-MoE. Names are those of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops import routing_inputs as draw
from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize
from wattune.ops.fields import one_of
from wattune.ops.operator import Argument, Array, Operator, Tolerance, Work
from wattune.ops.routing import Routing, bias_argument, result_arguments, route, weight_tolerance

# Choices nearer than this, in units of 1 + |choice|, may be ordered by a last bit of float32.
_MARGIN = 2e-6


@dataclass(frozen=True)
class MoeTopk(Routing):
    """topk_weights, topk_ids [tokens, top_k] of gating_output [tokens, num_experts] of ``dtype``.

    Ids are distinct and in range whatever the logits are; `ops/routing.py` says how they are
    chosen.
    """

    operator: ClassVar[str] = "moe_topk"

    def __post_init__(self) -> None:
        """Check every field."""
        self.check_routing()
        one_of(self, "dtype", FLOATS)


class MoeTopkOperator(Operator[MoeTopk]):
    """The operator object of `MoeTopk`."""

    name = "moe_topk"
    summary = "route tokens to experts: the best scores, softmax or sigmoid, bias and groups"
    problem = MoeTopk

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        inputs = ("gating_output", "e_score_correction_bias")
        return (*inputs, "workspace", "topk_weights", "topk_ids")

    def arguments(self, problem: MoeTopk) -> tuple[Argument, ...]:
        """Describe every tensor."""
        return (
            Argument("gating_output", ("tokens", problem.num_experts), problem.dtype, "input"),
            *bias_argument(problem),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            *result_arguments(problem),
        )

    def make_inputs(self, problem: MoeTopk, rng: np.random.Generator) -> dict[str, Array]:
        """Draw logits and a trained model's bias."""
        return self._inputs(problem, rng, draw.draw_bias, hard=False)

    def verification_inputs(self, problem: MoeTopk, rng: np.random.Generator) -> dict[str, Array]:
        """Draw ties, NaN, infinities and a bias that makes all choices negative."""
        return self._inputs(problem, rng, draw.hard_bias, hard=True)

    def _inputs(
        self, problem: MoeTopk, rng: np.random.Generator, draw_bias: Any, hard: bool
    ) -> dict[str, Array]:
        logits = draw.draw_logits(problem, rng)
        if hard:
            draw.harden(logits)
        if not problem.e_score_correction_bias:
            # Choices are the logits, or sums of none: no rounding decides.
            return {"gating_output": logits}
        bias = draw_bias(problem, rng)

        def redraw(rows: draw.Rows) -> None:
            logits[rows] = draw.draw_logits(problem, rng)[rows]

        draw.keep_apart(problem, logits, bias, _MARGIN, redraw)
        return {"gating_output": logits, "e_score_correction_bias": bias}

    def reference(self, problem: MoeTopk, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Sort every token's choices; scores are float64, choices float32."""
        bias = inputs.get("e_score_correction_bias")
        weights, ids = route(problem, inputs["gating_output"], bias)
        return {"topk_weights": weights, "topk_ids": ids}

    def work(self, problem: MoeTopk) -> Work:
        """Count a score's comparison; logits are read once, results written once."""
        scores = problem.tokens * problem.num_experts
        bias = 4 * problem.num_experts * problem.e_score_correction_bias
        moved = scores * itemsize(problem.dtype) + bias + 8 * problem.tokens * problem.top_k
        return Work(scores, moved)

    def tolerance(self, problem: MoeTopk, output: str) -> Tolerance:
        """Ids are exact: inputs keep biased choices apart."""
        if output == "topk_ids":
            return Tolerance(0.0, 0.0, "comparisons are exact")
        return weight_tolerance(problem)

    def examples(self) -> tuple[MoeTopk, ...]:
        """Return the routers of MiMo-V2-Flash, DeepSeek-V3 and Qwen3-235B-A22B."""
        groups: dict[str, Any] = {"num_expert_group": 8, "topk_group": 4}
        return (
            MoeTopk(8, 256, 8, e_score_correction_bias=True),
            MoeTopk(8, 256, 8, e_score_correction_bias=True, routed_scaling_factor=2.5, **groups),
            MoeTopk(8, 128, 8, scoring_func="softmax"),
        )

    def parse_shape(self, text: str, **fields: Any) -> MoeTopk:
        """Read ``TOKENSxEXPERTSxTOP_K``."""
        return MoeTopk(**sizes_of(self.name, ("tokens", "num_experts", "top_k"), text), **fields)


MOE_TOPK = MoeTopkOperator()
