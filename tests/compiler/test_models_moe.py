"""Mixture-of-experts layers of configs, and what a layer costs at each batch size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattune.compiler.models import (
    LayerProblem,
    Step,
    model_from_config,
    moe_cost,
    problems_from_config,
)
from wattune.errors import UnknownNameError, WattuneError
from wattune.ops import FusedMoe, MoeGate, MoeTopk
from wattune.ops.experts import touched

EXAMPLES = Path(__file__).parents[2] / "examples"
MIMO, DEEPSEEK, QWEN = (
    EXAMPLES / f"{name}.json" for name in ("mimo-v2-flash", "deepseek-v3", "qwen3-30b-a3b")
)


def experts(config: Any, **step: Any) -> list[LayerProblem]:
    given = Step(attention="none", **{"experts": "bf16", **step})
    return problems_from_config(config, step=given)


def changed(path: Path, **changes: Any) -> dict[str, Any]:
    return {**json.loads(path.read_text()), **changes}


def test_mimo_v2_flash() -> None:
    gate, route, layer = experts(MIMO)
    assert gate.problem == MoeGate(1, 256, 4096)
    assert route.problem == MoeTopk(1, 256, 8, "sigmoid", True)
    assert layer.problem == FusedMoe(1, 256, 8, 4096, 2048)
    # The first block is dense.
    assert gate.multiplicity == route.multiplicity == layer.multiplicity == 47
    assert layer.layer_names[0] == "model.layers.1.mlp"


def test_deepseek_v3() -> None:
    gate, route, layer = experts(DEEPSEEK, experts="int4", skew=0.8)
    assert gate.problem == MoeGate(1, 256, 7168, weight_dtype="bfloat16")
    groups: dict[str, Any] = {"num_expert_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5}
    assert route.problem == MoeTopk(1, 256, 8, "sigmoid", True, skew=0.8, **groups)
    assert layer.problem == FusedMoe(1, 256, 8, 7168, 2048, format="int4", skew=0.8)
    assert layer.multiplicity == 58


def test_qwen3_moe() -> None:
    gate, route, layer = experts(QWEN)
    assert gate.problem == MoeGate(1, 128, 2048, weight_dtype="bfloat16")
    assert route.problem == MoeTopk(1, 128, 8, "softmax")
    assert (layer.problem, layer.multiplicity) == (FusedMoe(1, 128, 8, 2048, 768), 48)
    others = experts(changed(QWEN, decoder_sparse_step=2, mlp_only_layers=[1, 5]))
    assert others[0].layer_names[:3] == tuple(f"model.layers.{i}.mlp" for i in (3, 7, 9))


def test_mimo_as_transformers_writes_it() -> None:
    types = ["dense", *["sparse"] * 46, "dense"]
    config = {**changed(MIMO, mlp_layer_types=types), "moe_layer_freq": None}
    assert {layer.multiplicity for layer in experts(config)} == {46}


def test_token_buckets() -> None:
    layers = experts(QWEN, batch={1: 0.75, 8: 0.25}, query_tokens=2)
    found = {layer.problem.sizes["tokens"]: layer.weight for layer in layers}
    assert found == {2: 0.75, 16: 0.25}


def test_experts_are_left_out_unless_asked_for() -> None:
    assert experts(MIMO, experts="none") == []
    assert experts(EXAMPLES / "qwen3-8b.json") == []
    with pytest.raises(UnknownNameError, match="int8"):
        experts(MIMO, experts="fp8")


@pytest.mark.parametrize(
    ("tokens", "distinct", "rows", "gigabytes"),
    [
        (1, 8, 1.0, 0.403),
        (4, 30.5, 1.05, 1.54),
        (8, 57.4, 1.11, 2.89),
        (16, 102, 1.26, 5.13),
        (32, 163, 1.57, 8.2),
        (64, 222, 2.3, 11.2),
        (256, 256, 8.0, 12.9),
    ],
)
def test_what_a_layer_costs(tokens: int, distinct: float, rows: float, gigabytes: float) -> None:
    shape = model_from_config(MIMO).moe["model.layers.1.mlp"]
    cost = moe_cost(shape, tokens)
    assert cost.distinct == pytest.approx(distinct, rel=0.005)
    assert cost.rows == pytest.approx(rows, rel=0.02)
    assert cost.bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)
    assert moe_cost(shape, tokens, "int4").bytes == pytest.approx(cost.bytes * 4.25 / 16)


def test_skew_makes_fewer_experts_cost_less() -> None:
    shape = model_from_config(MIMO).moe["model.layers.1.mlp"]
    costs = [moe_cost(shape, 32, skew=skew).distinct for skew in (0.0, 0.5, 1.0, 2.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 3
    # What inputs are drawn with.
    for skew, tokens in ((0.5, 32), (1.0, 8), (1.0, 64)):
        draws = [touched(FusedMoe(tokens + i, 256, 8, 64, 64, skew=skew)) for i in range(-4, 5)]
        assert moe_cost(shape, tokens, skew=skew).distinct == pytest.approx(
            sum(draws) / len(draws), rel=0.05
        )
    assert moe_cost(shape, 1, skew=3.0).distinct == pytest.approx(8)


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        (MIMO, {"moe_layer_freq": [0, 1]}, ("moe_layer_freq", "48")),
        (MIMO, {"n_group": 7}, ("num_expert_group", "7")),
        (DEEPSEEK, {"topk_group": 9}, ("topk_group", "9")),
        (DEEPSEEK, {"scoring_func": "tanh"}, ("scoring_func", "sigmoid")),
        (DEEPSEEK, {"routed_scaling_factor": 0}, ("routed_scaling_factor", "> 0")),
        (DEEPSEEK, {"first_k_dense_replace": -1}, ("first_k_dense_replace", ">= 0")),
        (QWEN, {"num_experts_per_tok": 129}, ("top_k", "128")),
    ],
)
def test_refused_configs_name_the_field(
    path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(WattuneError) as error:
        experts(changed(path, **changes))
    for word in words:
        assert word in str(error.value)
