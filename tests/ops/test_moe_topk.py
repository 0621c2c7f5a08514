"""Routing: a plain loop, properties that break in other libraries, torch, every field."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import MoeTopk, operator, problem_from_json
from wattune.ops.operator import Array
from wattune.ops.routing import route

OPERATOR = operator("moe_topk")
NAN, INF = float("nan"), float("inf")
BIAS: dict[str, Any] = {"e_score_correction_bias": True}
GROUPS: dict[str, Any] = {"num_expert_group": 4, "topk_group": 2}
SOFTMAX: dict[str, Any] = {"scoring_func": "softmax"}
ROUTERS: tuple[dict[str, Any], ...] = (
    {},
    SOFTMAX,
    BIAS,
    SOFTMAX | BIAS,
    GROUPS,
    BIAS | GROUPS,
    SOFTMAX | BIAS | GROUPS | {"renormalize": False, "routed_scaling_factor": 2.5},
)


def routed(
    logits: Any, top_k: int, bias: Any = None, **fields: Any
) -> tuple[list[list[float]], list[list[int]]]:
    """Route rows of logits."""
    rows = np.atleast_2d(np.asarray(logits, np.float32))
    given = None if bias is None else np.asarray(bias, np.float32)
    fields = {"e_score_correction_bias": bias is not None, **fields}
    weights, ids = route(MoeTopk(len(rows), rows.shape[1], top_k, **fields), rows, given)
    return weights.tolist(), ids.tolist()


def test_greatest_first_and_ties_by_id() -> None:
    weights, ids = routed([0.0, 2.0, 1.0, 2.0, -1.0], 3)
    assert ids == [[1, 3, 2]]
    s = [1 / (1 + math.exp(-x)) for x in (2.0, 2.0, 1.0)]
    assert weights[0] == pytest.approx([x / sum(s) for x in s])
    assert routed([0.0, -0.0, 0.0], 2)[1] == [[0, 1]]
    weights, ids = routed(
        [1.0, 3.0, 2.0], 2, renormalize=False, routed_scaling_factor=2.0, **SOFTMAX
    )
    total = sum(math.exp(x) for x in (1, 2, 3))
    assert weights[0] == pytest.approx([2 * math.exp(3) / total, 2 * math.exp(2) / total])


def test_bias_selects_and_does_not_weigh() -> None:
    weights, ids = routed([0.0, 0.0, 0.0], 2, [0.0, 0.5, 0.25], renormalize=False)
    assert (ids, weights) == ([[1, 2]], [[0.5, 0.5]])
    # All choices are below -1.
    assert routed([0.0, 1.0, 2.0], 2, [-5.0] * 3)[1] == [[2, 1]]
    # bfloat16 knows no number between 7 and 7.03.
    assert routed([0.0] * 3, 2, [7.0, 7.01, 7.02])[1] == [[2, 1]]


def test_groups_that_are_left_out_never_win() -> None:
    # Chosen by the sum of two: group 1 is better, though 0 holds the best expert.
    logits, bias = [3.0, -9.0, 1.0, 1.0], [-5.0] * 4
    fields = {"num_expert_group": 2, "topk_group": 1}
    assert routed(logits, 2, bias, **fields)[1] == [[2, 3]]
    # Without a bias groups are as good as their best.
    assert routed(logits, 2, **fields)[1] == [[0, 1]]
    assert routed([1.0, 0.0, 1.0, 0.5], 2, **fields)[1] == [[0, 1]]


@pytest.mark.parametrize("fields", [{}, SOFTMAX, BIAS, SOFTMAX | BIAS], ids=str)
def test_what_is_no_number_comes_last(fields: dict[str, Any]) -> None:
    bias = [-5.0] * 4 if fields.get("e_score_correction_bias") else None
    fields = {k: v for k, v in fields.items() if k not in BIAS}
    weights, ids = routed([NAN, -INF, NAN, 1.0], 4, bias, **fields)
    assert ids == [[3, 1, 0, 2]]
    assert weights[0] == pytest.approx([1, 0, 0, 0])
    weights, ids = routed([NAN] * 4, 2, bias, **fields)
    assert (weights, ids) == ([[0, 0]], [[0, 1]])
    weights, ids = routed([-INF] * 4, 2, bias, **fields)
    assert (weights, ids) == ([[0, 0]], [[0, 1]])
    weights, ids = routed([0.0, INF, 0.0, 0.0], 2, bias, **fields)
    # A sigmoid of infinity is 1, a softmax none.
    expected = [0, 2] if "scoring_func" in fields else [1, 0]
    assert ids == [expected]
    assert sum(weights[0]) == pytest.approx(1)


def in_a_loop(problem: MoeTopk, logits: list[float], bias: list[float] | None) -> list[int]:
    """Take experts one at a time; without NaN, and infinities."""
    experts, size = range(problem.num_experts), problem.group_size
    s = [1 / (1 + math.exp(-x)) for x in logits]
    if problem.scoring_func == "softmax":
        s = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    c = [a + b for a, b in zip(s, bias or [0.0] * len(s), strict=True)]

    def value(group: int) -> float:
        inside = sorted(c[group * size : (group + 1) * size])
        return sum(inside[-2:]) if bias else inside[-1]

    groups = sorted(range(problem.num_expert_group), key=lambda g: (-value(g), g))
    kept = groups[: problem.topk_group]
    left = [e for e in experts if e // size in kept]
    return sorted(left, key=lambda e: (-c[e], e))[: problem.top_k]


@pytest.mark.parametrize("fields", ROUTERS, ids=str)
def test_equals_a_plain_loop(fields: dict[str, Any]) -> None:
    problem = MoeTopk(30, 20, 3, **fields)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    bias = inputs.get("e_score_correction_bias")
    found = OPERATOR.reference(problem, inputs)["topk_ids"]
    listed = None if bias is None else bias.tolist()
    for logits, ids in zip(inputs["gating_output"], found, strict=True):
        assert ids.tolist() == in_a_loop(problem, logits.tolist(), listed)


def check_rows(problem: MoeTopk, found: dict[str, Array]) -> None:
    """Ids are distinct and in range; weights sum to the scale, or are all 0."""
    ids, weights = found["topk_ids"], found["topk_weights"]
    assert all(len(set(row)) == problem.top_k for row in ids.tolist())
    assert ((ids >= 0) & (ids < problem.num_experts)).all()
    assert (weights >= 0).all()
    if problem.renormalize:
        total, scale = weights.sum(-1), problem.routed_scaling_factor
        assert (np.isclose(total, scale, rtol=1e-6) | (weights == 0).all(-1)).all()


@pytest.mark.parametrize("fields", ROUTERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ids_are_distinct_whatever_the_logits(fields: dict[str, Any], dtype: str) -> None:
    problem = MoeTopk(40, 24, 5, dtype=dtype, **fields)
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(1))
    assert not np.isfinite(inputs["gating_output"].astype(np.float32)).all()
    check_rows(problem, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize("fields", [{}, SOFTMAX, BIAS], ids=str)
def test_permuting_experts_permutes_ids(fields: dict[str, Any]) -> None:
    problem = MoeTopk(20, 32, 4, **fields)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(2))
    order = np.random.default_rng(3).permutation(32)
    found = OPERATOR.reference(problem, inputs)
    moved = OPERATOR.reference(problem, {n: v[..., order] for n, v in inputs.items()})
    np.testing.assert_array_equal(order[moved["topk_ids"]], found["topk_ids"])
    np.testing.assert_allclose(moved["topk_weights"], found["topk_weights"], rtol=1e-6)


def test_a_constant_bias_changes_nothing() -> None:
    problem = MoeTopk(20, 32, 4)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(4))
    found = OPERATOR.reference(problem, inputs)
    biased = dataclasses.replace(problem, **BIAS)
    for constant in (-5.0, 0.0, 7.0):
        bias = np.full(32, constant, np.float32)
        moved = OPERATOR.reference(biased, {**inputs, "e_score_correction_bias": bias})
        np.testing.assert_array_equal(moved["topk_ids"], found["topk_ids"])
        np.testing.assert_array_equal(moved["topk_weights"], found["topk_weights"])


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_equals_torch(scoring_func: str) -> None:
    torch = pytest.importorskip("torch")
    problem = MoeTopk(50, 64, 6, scoring_func)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(5))
    logits = torch.from_numpy(inputs["gating_output"])
    s = torch.sigmoid(logits) if scoring_func == "sigmoid" else torch.softmax(logits, -1)
    weights, ids = s.topk(6, -1)
    found = OPERATOR.reference(problem, inputs)
    np.testing.assert_array_equal(found["topk_ids"], ids.numpy())
    expected = (weights / weights.sum(-1, keepdim=True)).numpy()
    np.testing.assert_allclose(found["topk_weights"], expected, rtol=1e-6)


def test_skew_makes_some_experts_popular() -> None:
    def share(skew: float) -> float:
        problem = MoeTopk(400, 64, 4, skew=skew)
        inputs = OPERATOR.make_inputs(problem, np.random.default_rng(6))
        ids = OPERATOR.reference(problem, inputs)["topk_ids"]
        counts = np.sort(np.bincount(ids.ravel(), minlength=64))
        return float(counts[-8:].sum() / counts.sum())

    assert 0.1 < share(0.0) < 0.2
    assert share(1.0) > 0.35


def test_choices_of_inputs_are_apart() -> None:
    problem = MoeTopk(300, 256, 8, **BIAS)
    for draw in (OPERATOR.make_inputs, OPERATOR.verification_inputs):
        inputs = draw(problem, np.random.default_rng(7))
        bias, logits = inputs["e_score_correction_bias"], inputs["gating_output"]
        plain = np.isfinite(logits).all(-1)
        c = 1 / (1 + np.exp(-logits[plain].astype(np.float64))) + bias
        gaps = -np.diff(-np.sort(-c, -1)[:, :9])
        assert ((gaps > 1e-6) | (gaps < 1e-30)).all()


def test_json_round_trip() -> None:
    for fields in ROUTERS:
        problem = MoeTopk(8, 64, 4, skew=0.5, **fields)
        assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("8x64x4", **GROUPS) == MoeTopk(8, 64, 4, **GROUPS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 65}, "top_k is 65; allowed: an integer from 1 to 64"),
        (
            {"num_expert_group": 5},
            r"num_expert_group is 5; allowed: a divisor of num_experts \(64\)",
        ),
        ({"topk_group": 2}, "topk_group is 2"),
        ({"num_expert_group": 64, "topk_group": 8, **BIAS}, "groups of two experts"),
        ({"num_expert_group": 32, "topk_group": 1}, "top_k is 4; allowed: at most"),
        ({"scoring_func": "tanh"}, "sigmoid, softmax"),
        ({"renormalize": 1}, "renormalize is 1"),
        ({"routed_scaling_factor": -1.0}, "routed_scaling_factor"),
        ({"dtype": "int8"}, "dtype"),
        ({"num_experts": 0}, "num_experts"),
        ({"skew": NAN}, "skew"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        MoeTopk(**{"tokens": 1, "num_experts": 64, "top_k": 4, **fields})
