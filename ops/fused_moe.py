"""Fused mixture of experts: gate and up, SiLU, down and the weighted sum over a token's experts.

    h[t, j] = silu(x[t] @ gate[e]^T) * (x[t] @ up[e]^T),   e = topk_ids[t, j]
    out[t]  = sum over j of topk_weights[t, j] * (h[t, j] @ w2[e]^T)

The MLP of MiMo-V2-Flash, DeepSeek-V3 and Qwen3-MoE; names are those of vLLM's fused_experts.
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
class FusedMoe(experts.ExpertsProblem):
    """out[tokens, hidden_size] of hidden_states[tokens, hidden_size].

    w1 packs ``gate_up_proj`` [num_experts, 2 * intermediate_size, hidden_size], rows of gate before
    rows of up, and w2 ``down_proj`` [num_experts, hidden_size, intermediate_size]; ``format`` is
    that of both. Activations are rounded before each product: to bfloat16, beside integer weights
    to int8 per row. All sums are float32, that over a token's experts in the order of its slots.
    Slots with an id of -1 (an expert elsewhere) add nothing.
    """

    operator: ClassVar[str] = "fused_moe"
    depths: ClassVar[tuple[str, ...]] = ("hidden_size", "intermediate_size")

    hidden_size: int
    intermediate_size: int
    dtype: str = "bfloat16"
    format: str = "bf16"
    skew: float = 0.0

    def shared_data(self) -> str:
        """Name the weights: one packed copy serves every token bucket."""
        sizes = f"{self.num_experts}x{self.hidden_size}x{self.intermediate_size}"
        return f"fused_moe.experts:{sizes}:{self.format}"


class FusedMoeOperator(experts.ExpertsOperator[FusedMoe]):
    """The operator object of `FusedMoe`."""

    name = "fused_moe"
    summary = "SiLU-gated experts and their weighted sum, weights bf16, int8 or int4"
    problem = FusedMoe

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "workspace", "out")

    def arguments(self, problem: FusedMoe) -> tuple[Argument, ...]:
        """Describe every tensor."""
        count, form = problem.num_experts, problem.format
        hidden, inner = problem.hidden_size, problem.intermediate_size
        return (
            Argument("hidden_states", ("tokens", hidden), problem.dtype, "input"),
            experts.weights("w1", "gate_up_proj", (count, 2 * inner, hidden), form),
            experts.weights("w2", "down_proj", (count, hidden, inner), form),
            Argument("topk_weights", ("tokens", problem.top_k), "float32", "input"),
            experts.topk_ids(problem.top_k, count),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("out", ("tokens", hidden), problem.dtype, "output"),
        )

    def make_inputs(self, problem: FusedMoe, rng: np.random.Generator) -> dict[str, Array]:
        """Draw activations, weights and routing."""
        _, w1, w2, *_ = self.arguments(problem)
        form = problem.format
        return {
            **self.timing_inputs(problem, rng),
            "gate_up_proj": experts.make_weights(w1, problem.hidden_size, form, rng),
            "down_proj": experts.make_weights(w2, problem.intermediate_size, form, rng),
        }

    def verification_inputs(self, problem: FusedMoe, rng: np.random.Generator) -> dict[str, Array]:
        """Draw routing that kernels get wrong; NaN in all that no token may see."""
        inputs = self.make_inputs(problem, rng)
        inputs["topk_ids"] = experts.hard_routes(problem, rng)
        for name in ("gate_up_proj", "down_proj"):
            experts.poison_untouched(inputs[name], inputs["topk_ids"], problem.format)
        inputs["topk_weights"][inputs["topk_ids"] < 0] = np.nan
        return inputs

    def timing_inputs(self, problem: FusedMoe, rng: np.random.Generator) -> dict[str, Array]:
        """Draw activations and routing; weights of a token sum to 1."""
        x = rng.standard_normal((problem.tokens, problem.hidden_size), dtype=np.float32)
        shares = rng.uniform(0.1, 1.0, (problem.tokens, problem.top_k)).astype(np.float32)
        return {
            "hidden_states": round_to(x, problem.dtype),
            "topk_weights": shares / shares.sum(-1, keepdims=True),
            "topk_ids": experts.route(problem),
        }

    def reference(self, problem: FusedMoe, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the sum expert by expert in float64, rounded once; h is rounded as it is used."""
        ids, shares = inputs["topk_ids"], inputs["topk_weights"].astype(np.float64)
        y = np.zeros((*ids.shape, problem.hidden_size))
        for expert, tokens, slots in experts.by_expert(ids):
            rows = inputs["hidden_states"][tokens]
            both = experts.product(rows, inputs["gate_up_proj"][expert], problem.format)
            gate, up = np.split(both, 2, -1)
            h = gate / (1 + np.exp(-gate)) * up
            y[tokens, slots] = experts.product(h, inputs["down_proj"][expert], problem.format)
        here = (ids >= 0)[..., None]
        out = np.where(here, shares[..., None] * y, 0.0).sum(1)
        return {"out": round_to(out, problem.dtype)}

    def work(self, problem: FusedMoe) -> Work:
        """Count the products, and the bytes of the experts that are touched and of the rows."""
        hidden, inner, form = problem.hidden_size, problem.intermediate_size, problem.format
        weight = experts.weight_bytes(2 * inner, hidden, form)
        weight += experts.weight_bytes(hidden, inner, form)
        rows = 2 * problem.tokens * hidden * itemsize(problem.dtype)
        pairs = problem.tokens * problem.top_k
        moved = experts.touched(problem) * weight + rows + 8 * pairs
        return Work(6 * pairs * hidden * inner, moved, integer=form != "bf16")

    def examples(self) -> tuple[FusedMoe, ...]:
        """Return a MiMo-V2-Flash layer for one token and for eight."""
        return (FusedMoe(1, 256, 8, 4096, 2048), FusedMoe(8, 256, 8, 4096, 2048))

    def parse_shape(self, text: str, **fields: Any) -> FusedMoe:
        """Read ``TOKENSxEXPERTSxTOP_KxHIDDENxINTERMEDIATE``."""
        sizes = self.five_sizes(
            text, "TOKENSxEXPERTSxTOP_KxHIDDENxINTERMEDIATE", "8x256x8x4096x2048"
        )
        tokens, num_experts, top_k, hidden, inner = sizes
        return FusedMoe(tokens, num_experts, top_k, hidden, inner, **fields)


FUSED_MOE = FusedMoeOperator()
