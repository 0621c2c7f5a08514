"""Logits of a mixture of experts' router: hidden states times the gate's weight, in float32.

Sources: the routers of MiMo-V2-Flash and DeepSeek-V3, whose gate is a float32 product whatever the
model's dtype: one of bfloat16 routes 5 % of tokens elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, numpy_dtype, round_to, unit_roundoff
from wattune.ops.fields import integer, one_of
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work
from wattune.ops.routing import MOST_EXPERTS

# The fewest lanes that share a logit's sum.
_LANES = 4
# Random weights are drawn this many at a time, and repeated.
_TILE = 1 << 20


@dataclass(frozen=True)
class MoeGate(Problem):
    """router_logits [tokens, num_experts] = hidden_states [tokens, hidden_size] @ W^T, float32.

    ``dtype`` is that of the hidden states, ``weight_dtype`` that of W [num_experts, hidden_size].
    All products and sums are of float32. The order of a sum depends on the packed weight alone: a
    token's logits are the same bits whatever tokens are beside it and however many threads there
    are.
    """

    operator: ClassVar[str] = "moe_gate"
    runtime: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: int
    num_experts: int
    hidden_size: int
    dtype: str = "bfloat16"
    weight_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check every field."""
        integer(self, "tokens", 1)
        integer(self, "num_experts", 1, MOST_EXPERTS)
        integer(self, "hidden_size", 1)
        one_of(self, "dtype", FLOATS)
        one_of(self, "weight_dtype", FLOATS)

    def shared_data(self) -> str:
        """Name the weight: one packed copy serves every number of tokens."""
        return f"moe_gate.weight:{self.num_experts}x{self.hidden_size}:{self.weight_dtype}"


class MoeGateOperator(Operator[MoeGate]):
    """The operator object of `MoeGate`."""

    name = "moe_gate"
    summary = "router logits = hidden_states @ W^T in float32, bit for bit whatever the batch"
    problem = MoeGate

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("hidden_states", "weight", "workspace", "router_logits")

    def arguments(self, problem: MoeGate) -> tuple[Argument, ...]:
        """Describe every tensor."""
        shape = (problem.num_experts, problem.hidden_size)
        source = Argument("gate_weight", shape, problem.weight_dtype, "input")
        return (
            Argument("hidden_states", ("tokens", problem.hidden_size), problem.dtype, "input"),
            Argument("weight", ("weight_bytes",), "uint8", "packed", source=source),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("router_logits", ("tokens", problem.num_experts), "float32", "output"),
        )

    def make_inputs(self, problem: MoeGate, rng: np.random.Generator) -> dict[str, Array]:
        """Draw hidden states, and weights that make logits about as large as one."""
        hidden = problem.hidden_size
        x = rng.standard_normal((problem.tokens, hidden), dtype=np.float32)
        w = rng.standard_normal((problem.num_experts, hidden), dtype=np.float32)
        w *= np.float32(hidden**-0.5)
        return {
            "hidden_states": round_to(x, problem.dtype),
            "gate_weight": round_to(w, problem.weight_dtype),
        }

    def verification_inputs(self, problem: MoeGate, rng: np.random.Generator) -> dict[str, Array]:
        """Draw infinities, zeros and tiny numbers in some tokens; none may reach another."""
        inputs = self.make_inputs(problem, rng)
        for row, line in enumerate(inputs["hidden_states"]):
            match row % 4:
                case 1:
                    line[rng.integers(problem.hidden_size)] = np.inf
                case 2:
                    line[...] = 0
                case 3:
                    line[::2] *= line.dtype.type(1e-4)
        return inputs

    def reference(self, problem: MoeGate, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Multiply in float64."""
        x, w = (inputs[name].astype(np.float64) for name in ("hidden_states", "gate_weight"))
        with np.errstate(invalid="ignore"):
            return {"router_logits": (x @ w.T).astype(np.float32)}

    def work(self, problem: MoeGate) -> Work:
        """Count products and sums; all tensors move once."""
        tokens, experts, hidden = problem.tokens, problem.num_experts, problem.hidden_size
        moved = experts * hidden * itemsize(problem.weight_dtype)
        moved += tokens * (hidden * itemsize(problem.dtype) + 4 * experts)
        return Work(2 * tokens * experts * hidden, moved)

    def tolerance(self, problem: MoeGate, output: str) -> Tolerance:
        """Allow what sums of float32 lose."""
        terms = -(-problem.hidden_size // _LANES)
        reason = (
            f"a lane rounds at most {terms} partial sums to float32; errors add up like a random "
            "walk, of which the tolerance is eight deviations"
        )
        return Tolerance(2e-6, 8 * unit_roundoff("float32") * max(1.0, terms**0.5), reason)

    def random_bytes(
        self, problem: MoeGate, argument: str, count: int, seed: int
    ) -> NDArray[np.uint8]:
        """Draw weights: bytes at random are NaN and denormal numbers too."""
        drawn = np.random.default_rng(seed).standard_normal(_TILE, dtype=np.float32)
        found = drawn.astype(numpy_dtype(problem.weight_dtype)).view(np.uint8)
        return np.resize(found, count)

    def examples(self) -> tuple[MoeGate, ...]:
        """Return the gates of MiMo-V2-Flash, DeepSeek-V3 and Qwen3-235B-A22B."""
        return (
            MoeGate(8, 256, 4096),
            MoeGate(8, 256, 7168, weight_dtype="bfloat16"),
            MoeGate(8, 128, 4096, weight_dtype="bfloat16"),
        )

    def parse_shape(self, text: str, **fields: Any) -> MoeGate:
        """Read ``TOKENSxEXPERTSxHIDDEN``."""
        names = ("tokens", "num_experts", "hidden_size")
        return MoeGate(**sizes_of(self.name, names, text), **fields)


MOE_GATE = MoeGateOperator()
