"""Mixture-of-experts layers: routers and experts of MiMo-V2-Flash, DeepSeek-V3 and Qwen3-MoE."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.models.config import Config
from wattune.compiler.models.layers import LayerProblem, Model, MoeShape
from wattune.compiler.models.step import Step
from wattune.errors import UnknownNameError
from wattune.ops import FusedMoe, MoeGate, MoeTopk, Problem
from wattune.ops.expert_weights import FORMATS
from wattune.ops.routing import SCORING

# What becomes of the experts: not tuned, or tuned with weights of a format.
NO_EXPERTS = "none"
EXPERTS = (NO_EXPERTS, *FORMATS)

_MLP_TYPES = ("dense", "sparse")


@dataclass(frozen=True)
class MoeCost:
    """What a layer's experts cost a step of ``tokens``.

    ``distinct``: the experts that any token chose, on average; ``rows``: the tokens of each of
    these; ``bytes``: their weights.
    """

    tokens: int
    distinct: float
    rows: float
    bytes: float


def moe_cost(shape: MoeShape, tokens: int, format: str = "bf16", skew: float = 0.0) -> MoeCost:
    """Return the cost of ``tokens`` at once.

    An expert that a token chooses with probability p is read with 1 - (1 - p)^tokens; ``skew`` is
    that of `Step`, 0 for p = k / E of all experts.
    """
    chosen = choice_probabilities(shape.num_experts, shape.top_k, skew)
    distinct = float((1 - (1 - chosen) ** tokens).sum())
    hidden, inner, coding = shape.hidden_size, shape.intermediate_size, FORMATS[format]
    bits = 2 * hidden * inner * coding.bits(hidden) + hidden * inner * coding.bits(inner)
    return MoeCost(tokens, distinct, tokens * shape.top_k / distinct, distinct * bits / 8)


def choice_probabilities(experts: int, top_k: int, skew: float) -> NDArray[np.float64]:
    """Return the probability that a token chooses each expert, the most popular one first.

    Experts are drawn without repetition, the one of rank r like w = (r + 1)^-skew. As in a race of
    exponential times: those that arrive by the time t when ``top_k`` are expected, 1 - exp(-w t).
    """
    if not skew or top_k == experts:
        return np.full(experts, top_k / experts)
    weights = (1.0 + np.arange(experts)) ** -skew
    low, high = -700.0, 700.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        enough = (1 - np.exp(-weights * np.exp(middle))).sum() >= top_k
        low, high = (low, middle) if enough else (middle, high)
    return np.asarray(1 - np.exp(-weights * np.exp(high)))


def moe_problems(model: Model, step: Step) -> list[LayerProblem]:
    """Merge equal layers into problems: gate, routing, experts, one of each a token bucket."""
    if step.experts not in EXPERTS:
        raise UnknownNameError("kind of experts", step.experts, EXPERTS)
    if step.experts == NO_EXPERTS:
        return []
    layers: dict[MoeShape, list[str]] = {}
    for name, shape in model.moe.items():
        layers.setdefault(shape, []).append(name)
    return [
        LayerProblem(problem, len(names), tuple(names), weight, tokens)
        for tokens, weight in step.token_buckets().items()
        for shape, names in layers.items()
        for problem in _problems(model, step, shape, tokens)
    ]


def _problems(model: Model, step: Step, shape: MoeShape, tokens: int) -> tuple[Problem, ...]:
    fields = asdict(shape)
    names = ("hidden_size", "intermediate_size", "gate_dtype")
    hidden, inner, gate_dtype = (fields.pop(name) for name in names)
    experts, top_k = shape.num_experts, shape.top_k
    # Kernels of experts read no float16.
    dtype = model.dtype if model.dtype != "float16" else "bfloat16"
    return (
        MoeGate(tokens, experts, hidden, dtype=dtype, weight_dtype=gate_dtype),
        MoeTopk(tokens=tokens, skew=step.skew, **fields),
        FusedMoe(
            tokens, experts, top_k, hidden, inner, dtype=dtype, format=step.experts, skew=step.skew
        ),
    )


def moe_name(block: int) -> str:
    """Return the module name of a block's experts."""
    return f"model.layers.{block}.mlp"


def deepseek_moe(config: Config) -> dict[str, MoeShape]:
    """Read the layers of DeepSeek-V3 and MiMo-V2-Flash: groups, sigmoid scores with a bias.

    Empty where the config names no experts. Shared experts are a dense layer and not counted. The
    gate's weight has the checkpoint's dtype, where a model does not say otherwise.
    """
    if not config.has("n_routed_experts"):
        return {}
    method = config.choice("topk_method", ("noaux_tc", "greedy"), "noaux_tc")
    shape = MoeShape(
        config.size("hidden_size"),
        config.size("moe_intermediate_size"),
        config.size("n_routed_experts"),
        config.size("num_experts_per_tok"),
        config.choice("scoring_func", SCORING, "sigmoid"),
        method == "noaux_tc",
        config.flag("norm_topk_prob", True),
        config.size("n_group", 1),
        config.size("topk_group", 1),
        config.number("routed_scaling_factor", 1.0),
        config.dtype(),
    )
    return {moe_name(block): shape for block in _sparse_blocks(config)}


def _sparse_blocks(config: Config) -> list[int]:
    """Return the blocks with experts: a list by transformers, or by MiMo; a first and a step."""
    blocks = config.size("num_hidden_layers")
    if config.has("mlp_layer_types"):
        types = config.items("mlp_layer_types", _MLP_TYPES, blocks)
        return [block for block, kind in enumerate(types) if kind == "sparse"]
    if isinstance(config.fields.get("moe_layer_freq"), list):
        pattern = config.items("moe_layer_freq", (0, 1), blocks)
        return [block for block, sparse in enumerate(pattern) if sparse]
    dense, every = config.count("first_k_dense_replace"), config.size("moe_layer_freq", 1)
    return [block for block in range(dense, blocks) if block % every == 0]


def qwen3_moe(config: Config) -> dict[str, MoeShape]:
    """Read the layers of Qwen3-MoE: a softmax without groups and bias; empty without experts."""
    # As the checkpoint has it, or as transformers writes it.
    count = "num_experts" if config.has("num_experts") else "num_local_experts"
    if not config.has(count):
        return {}
    shape = MoeShape(
        config.size("hidden_size"),
        config.size("moe_intermediate_size"),
        config.size(count),
        config.size("num_experts_per_tok"),
        "softmax",
        renormalize=config.flag("norm_topk_prob"),
        gate_dtype=config.dtype(),
    )
    blocks = config.size("num_hidden_layers")
    every = config.size("decoder_sparse_step", 1)
    dense: list[int] = []
    if config.has("mlp_only_layers"):
        dense = config.items("mlp_only_layers", range(blocks))
    sparse = (block for block in range(blocks) if (block + 1) % every == 0)
    return {moe_name(block): shape for block in sparse if block not in dense}
