"""Grouped GEMM: every token times the weights of each expert that it is routed to.

    y[t, j] = x[t] @ w[topk_ids[t, j]]^T

No sorting is asked of the caller: kernels find the rows of each expert. Rows that are sorted
already are tokens of one expert each (``top_k`` 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops import experts
from wattune.ops.dtypes import itemsize, round_to
from wattune.ops.operator import Argument, Array, Work


@dataclass(frozen=True)
class GroupedGemm(experts.ExpertsProblem):
    """y[tokens, top_k, out_features] = x[tokens, in_features] @ w[topk_ids[tokens, top_k]]^T.

    Activations are rounded to bfloat16, beside integer weights to int8 per token. Rows of an id of
    -1 (an expert elsewhere) are 0.
    """

    operator: ClassVar[str] = "grouped_gemm"
    widths: ClassVar[tuple[str, ...]] = ("out_features",)
    depths: ClassVar[tuple[str, ...]] = ("in_features",)

    out_features: int
    in_features: int
    dtype: str = "bfloat16"
    format: str = "bf16"
    skew: float = 0.0

    def shared_data(self) -> str:
        """Name the weights: one packed copy serves every token bucket."""
        sizes = f"{self.num_experts}x{self.out_features}x{self.in_features}"
        return f"grouped_gemm.w:{sizes}:{self.format}"


class GroupedGemmOperator(experts.ExpertsOperator[GroupedGemm]):
    """The operator object of `GroupedGemm`."""

    name = "grouped_gemm"
    summary = "y[t, j] = x[t] @ w[topk_ids[t, j]]^T, weights bf16, int8 or int4"
    problem = GroupedGemm

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("x", "w", "topk_ids", "workspace", "y")

    def arguments(self, problem: GroupedGemm) -> tuple[Argument, ...]:
        """Describe every tensor."""
        n, k = problem.out_features, problem.in_features
        return (
            Argument("x", ("tokens", k), problem.dtype, "input"),
            experts.weights("w", "weights", (problem.num_experts, n, k), problem.format),
            experts.topk_ids(problem.top_k, problem.num_experts),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("y", ("tokens", problem.top_k, n), problem.dtype, "output"),
        )

    def make_inputs(self, problem: GroupedGemm, rng: np.random.Generator) -> dict[str, Array]:
        """Draw activations, weights and routing."""
        w = self.arguments(problem)[1]
        return {
            **self.timing_inputs(problem, rng),
            "weights": experts.make_weights(w, problem.in_features, problem.format, rng),
        }

    def verification_inputs(
        self, problem: GroupedGemm, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw routing that kernels get wrong, and NaN for the experts that nobody chose."""
        inputs = self.make_inputs(problem, rng)
        inputs["topk_ids"] = experts.hard_routes(problem, rng)
        experts.poison_untouched(inputs["weights"], inputs["topk_ids"], problem.format)
        return inputs

    def timing_inputs(self, problem: GroupedGemm, rng: np.random.Generator) -> dict[str, Array]:
        """Draw activations and routing."""
        x = rng.standard_normal((problem.tokens, problem.in_features), dtype=np.float32)
        return {"x": round_to(x, problem.dtype), "topk_ids": experts.route(problem)}

    def reference(self, problem: GroupedGemm, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute y expert by expert in float64, rounded once."""
        ids = inputs["topk_ids"]
        y = np.zeros((*ids.shape, problem.out_features))
        for expert, tokens, slots in experts.by_expert(ids):
            rows = inputs["x"][tokens]
            y[tokens, slots] = experts.product(rows, inputs["weights"][expert], problem.format)
        return {"y": round_to(y, problem.dtype)}

    def work(self, problem: GroupedGemm) -> Work:
        """Count the products, and the bytes of the experts that are touched and of the rows."""
        n, k, pairs = problem.out_features, problem.in_features, problem.tokens * problem.top_k
        weight = experts.weight_bytes(n, k, problem.format)
        rows = (problem.tokens * k + pairs * n) * itemsize(problem.dtype)
        moved = experts.touched(problem) * weight + rows
        return Work(2 * pairs * n * k, moved, integer=problem.format != "bf16")

    def examples(self) -> tuple[GroupedGemm, ...]:
        """Return the gate and up projections of a MiMo-V2-Flash layer."""
        return (GroupedGemm(1, 256, 8, 4096, 4096), GroupedGemm(8, 256, 8, 4096, 4096))

    def parse_shape(self, text: str, **fields: Any) -> GroupedGemm:
        """Read ``TOKENSxEXPERTSxTOP_KxOUTxIN``."""
        sizes = self.five_sizes(text, "TOKENSxEXPERTSxTOP_KxOUTxIN", "8x256x8x4096x4096")
        tokens, num_experts, top_k, out, inside = sizes
        return GroupedGemm(tokens, num_experts, top_k, out, inside, **fields)


GROUPED_GEMM = GroupedGemmOperator()
