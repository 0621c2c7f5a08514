"""Our routing beside the routers of transformers' own modules, from the configs that they write.

Needs ``pip install wattune[test-models]``; skipped where transformers has no such model.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import run

from wattune.compiler.models import Step, problems_from_config
from wattune.ops import MoeTopk, operator
from wattune.ops.operator import Array
from wattune.schedules.target import Target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed (wattune[test-models])")

TOKENS = 50
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 6,
    "norm_topk_prob": True,
}
# Model, its router, what its config adds.
ROUTERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "mimo": (
        "mimo_v2_flash",
        "MiMoV2Flash",
        "MiMoV2FlashTopkRouter",
        {"n_routed_experts": 48, "n_group": 1, "topk_group": 1},
    ),
    "mimo in groups": (
        "mimo_v2_flash",
        "MiMoV2Flash",
        "MiMoV2FlashTopkRouter",
        {"n_routed_experts": 48, "n_group": 8, "topk_group": 3},
    ),
    "deepseek": (
        "deepseek_v3",
        "DeepseekV3",
        "DeepseekV3TopkRouter",
        {
            "n_routed_experts": 48,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
        },
    ),
    "qwen3": ("qwen3_moe", "Qwen3Moe", "Qwen3MoeTopKRouter", {"num_experts": 40}),
    "qwen3 without sums": (
        "qwen3_moe",
        "Qwen3Moe",
        "Qwen3MoeTopKRouter",
        {"num_experts": 40, "norm_topk_prob": False},
    ),
}


@pytest.fixture(scope="module", params=ROUTERS)
def case(request: pytest.FixtureRequest) -> tuple[MoeTopk, dict[str, Array], Array]:
    """Return our problem, the router's logits and bias, and its weights as [tokens, experts]."""
    model, prefix, router_name, more = ROUTERS[request.param]
    module = pytest.importorskip(
        f"transformers.models.{model}.modeling_{model}",
        reason=f"transformers has no {model} (wattune[test-models])",
        exc_type=ImportError,
    )
    configs = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    config = getattr(configs, f"{prefix}Config")(**{**SIZES, **more})
    torch.manual_seed(0)
    router = getattr(module, router_name)(config)
    with torch.no_grad():
        router.weight.normal_(0, 64**-0.5)
        if hasattr(router, "e_score_correction_bias"):
            # Below -1, and far enough apart to change what is chosen.
            router.e_score_correction_bias.uniform_(-5.3, -5.0)
        logits, weights, ids = router(torch.randn(TOKENS, 64))
    dense = torch.zeros(TOKENS, logits.shape[-1]).scatter(1, ids, weights.float())
    written = {**config.to_dict(), "architectures": [f"{prefix}ForCausalLM"], "dtype": "float32"}
    step = Step({TOKENS: 1.0}, attention="none", experts="bf16")
    problems = [layer.problem for layer in problems_from_config(written, step=step)]
    [problem] = [problem for problem in problems if isinstance(problem, MoeTopk)]
    inputs: dict[str, Array] = {"gating_output": logits.float().numpy()}
    if problem.e_score_correction_bias:
        inputs["e_score_correction_bias"] = router.e_score_correction_bias.numpy()
    return problem, inputs, dense.numpy()


def spread(found: dict[str, Array], experts: int) -> Array:
    """Return weights by expert: transformers does not order what is chosen."""
    dense = np.zeros((TOKENS, experts), np.float32)
    np.put_along_axis(dense, found["topk_ids"].astype(np.int64), found["topk_weights"], 1)
    return dense


def test_reference_and_kernel_route_alike(case: tuple[MoeTopk, dict[str, Array], Array]) -> None:
    problem, inputs, expected = case
    reference = operator(problem.operator).reference(problem, inputs)
    for found in (reference, run(problem, inputs, Target.native(1))):
        dense = spread(found, problem.num_experts)
        np.testing.assert_array_equal(dense > 0, expected > 0)
        np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-7)


def test_bias_and_groups_matter(case: tuple[MoeTopk, dict[str, Array], Array]) -> None:
    """The comparison above would notice if the bias, groups or scale were left out."""
    problem, inputs, expected = case
    changes: list[dict[str, Any]] = [{"renormalize": not problem.renormalize}]
    changes += [{"routed_scaling_factor": 1.1 * problem.routed_scaling_factor}]
    if problem.grouped:
        changes += [{"num_expert_group": 1, "topk_group": 1}]
    if problem.e_score_correction_bias:
        changes += [{"e_score_correction_bias": False}]
    for change in changes:
        other = MoeTopk(**{**_fields(problem), **change})
        given = dict(inputs)
        if not other.e_score_correction_bias:
            given.pop("e_score_correction_bias", None)
        found = operator(problem.operator).reference(other, given)
        assert np.abs(spread(found, problem.num_experts) - expected).max() > 1e-3, change


def _fields(problem: MoeTopk) -> dict[str, Any]:
    return {name: value for name, value in problem.to_json().items() if name != "operator"}
