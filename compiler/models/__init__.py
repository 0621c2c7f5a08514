"""Model configs: a Hugging Face ``config.json`` becomes problems with multiplicity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wattune.compiler.models.attention import KINDS, attention_problems
from wattune.compiler.models.buckets import normalised, parse_buckets
from wattune.compiler.models.config import Config
from wattune.compiler.models.deepseek import deepseek_v3
from wattune.compiler.models.layers import (
    AttentionShape,
    LayerProblem,
    Linear,
    Model,
    MoeShape,
)
from wattune.compiler.models.llama import bitnet, bitnet_linears, llama, qwen3
from wattune.compiler.models.mimo import mimo_v2_flash
from wattune.compiler.models.moe import EXPERTS, MoeCost, moe_cost, moe_problems
from wattune.compiler.models.step import Step, tokens_of
from wattune.ops import TernaryGemm

__all__ = [
    "EXPERTS",
    "KINDS",
    "AttentionShape",
    "Config",
    "LayerProblem",
    "Linear",
    "Model",
    "MoeCost",
    "MoeShape",
    "Step",
    "architecture",
    "bitnet_linears",
    "model_from_config",
    "moe_cost",
    "normalised",
    "parse_buckets",
    "problems_from_config",
    "tokens_of",
]

FAMILIES: Mapping[str, Callable[[Config], Model]] = {
    "BitNetForCausalLM": bitnet,
    "DeepseekV3ForCausalLM": deepseek_v3,
    "LlamaForCausalLM": llama,
    "MiMoV2FlashForCausalLM": mimo_v2_flash,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3,
}


def problems_from_config(
    config: str | Path | Mapping[str, Any],
    tokens: Mapping[int, float] | None = None,
    step: Step | None = None,
) -> list[LayerProblem]:
    """Return a model's problems for these steps: ternary layers, then experts, then attention.

    ``tokens`` are the buckets of ternary layers and experts where ``step`` does not name them
    (default: one token). Raises `ModelError` for an unsupported model and for a missing or wrong
    field.
    """
    model = model_from_config(config)
    wanted = step or Step()
    if tokens is not None and wanted.tokens is None:
        wanted = replace(wanted, tokens=tokens)
    return [
        *ternary_problems(model, wanted),
        *moe_problems(model, wanted),
        *attention_problems(model, wanted),
    ]


def model_from_config(config: str | Path | Mapping[str, Any]) -> Model:
    """Return the layers that a config describes."""
    read = Config.read(config)
    return FAMILIES[architecture(read)](read)


def architecture(config: Config) -> str:
    """Return the supported architecture that a config names."""
    return config.architecture(FAMILIES)


def ternary_problems(model: Model, step: Step) -> list[LayerProblem]:
    """Merge ternary layers of equal shape into problems, one per token bucket."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for linear in model.ternary:
        shapes.setdefault((linear.out_features, linear.in_features), []).append(linear.name)
    return [
        LayerProblem(
            TernaryGemm(count, out_features, in_features, dtype=model.dtype),
            len(names),
            tuple(names),
            weight,
            count,
        )
        for count, weight in step.token_buckets().items()
        for (out_features, in_features), names in shapes.items()
    ]
