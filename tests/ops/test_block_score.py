"""Block scores: the reference against a plain loop, the bound it promises, fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import BlockMinmax, BlockScore, operator, problem_from_json

OPERATOR = operator("block_score")


@pytest.mark.parametrize(
    "problem",
    [
        BlockScore(3, 70, 8, 2, 8),
        BlockScore(2, 70, 7, 1, 8, 32, query_tokens=3, dtype="float16", scale=0.5),
        BlockScore(2, 5, 2, 2, 8, dtype="float32"),
    ],
    ids=str,
)
def test_equals_a_plain_loop(problem: BlockScore) -> None:
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    got = OPERATOR.reference(problem, inputs)["scores"]
    low, high = (inputs[name].astype(np.float64) for name in ("k_min", "k_max"))
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        for head in range(problem.kv_heads):
            members = range(head * problem.group, (head + 1) * problem.group)
            queries = [
                inputs["q"][request, t, i].astype(np.float64)
                for t in range(problem.query_tokens)
                for i in members
            ]
            for block in range(got.shape[2]):
                if block * problem.block_size >= length:
                    assert got[request, head, block] == -np.inf
                    continue
                mean = sum(queries) / len(queries) * problem.scale
                products = [
                    max(m * a, m * b)
                    for m, a, b in zip(
                        mean, low[request, head, block], high[request, head, block], strict=True
                    )
                ]
                assert got[request, head, block] == pytest.approx(sum(products), rel=1e-6)


def test_bounds_the_mean_query_with_every_key_of_a_block() -> None:
    bounds = BlockMinmax(2, 90, 2, 8, query_tokens=0, dtype="float32")
    problem = BlockScore(2, 90, 4, 2, 8, dtype="float32")
    rng = np.random.default_rng(2)
    inputs = operator("block_minmax").make_inputs(bounds, rng)
    inputs.update(operator("block_minmax").reference(bounds, inputs))
    q = OPERATOR.make_inputs(problem, rng)["q"]
    scores = OPERATOR.reference(problem, {**inputs, "q": q})["scores"]
    mean = q.reshape(2, 2, 2, 8).mean(2) * problem.scale
    products = np.einsum("bhd,bhtd->bht", mean, inputs["k_cache"])
    assert (np.repeat(scores, 16, 2)[:, :, :90] >= products - 1e-6).all()


def test_scale_defaults_to_the_attention_scale() -> None:
    assert BlockScore(1, 64, 2, 2, 64).scale == 0.125
    assert BlockScore(1, 64, 2, 2, 64, scale=1).scale == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("query_heads", 3),
        ("query_tokens", 0),
        ("block_size", 0),
        ("scale", -1.0),
        ("scale", float("nan")),
        ("dtype", "float64"),
    ],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    fields = {"batch": 1, "context": 64, "query_heads": 4, "kv_heads": 2, "head_dim": 8}
    with pytest.raises(ProblemError, match=field):
        BlockScore(**{**fields, field: value})


def test_json_and_shape() -> None:
    problem = BlockScore(1, 64, 8, 2, 8, 32, query_tokens=2)
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("1x64x8x2x8", block_size=32, query_tokens=2) == problem


def test_work_counts_bounds_once() -> None:
    work = OPERATOR.work(BlockScore(1, 160, 4, 2, 8))
    assert work.bytes == (2 * 2 * 10 + 4) * 8 * 2 + 4 * 2 * 10
