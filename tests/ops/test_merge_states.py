"""Merging states: against attention over all keys at once, empty states, fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import MergeStates, operator, problem_from_json

OPERATOR = operator("merge_states")


def attend(scores: Any, values: Any) -> tuple[Any, Any]:
    """Return softmax(scores) values and the log-sum-exp in float64."""
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum(), scores.max() + np.log(weights.sum())


def test_parts_give_the_whole() -> None:
    rng = np.random.default_rng(0)
    problem = MergeStates(3, 4, 2, 8, dtype="float32")
    parts = np.zeros((3, 4, 2, 8), np.float32)
    lses = np.full((3, 4, 2), -np.inf, np.float32)
    whole = {"out": np.zeros((3, 2, 8)), "lse": np.zeros((3, 2))}
    for token, head in np.ndindex(3, 2):
        scores, values = rng.normal(0, 5, 20), rng.standard_normal((20, 8))
        whole["out"][token, head], whole["lse"][token, head] = attend(scores, values)
        # The third part has no key: its output is whatever was there.
        for state, keys in enumerate((slice(0, 3), slice(3, 15), slice(0, 0), slice(15, 20))):
            if keys.stop == keys.start:
                parts[token, state, head] = np.nan
                continue
            found = attend(scores[keys], values[keys])
            parts[token, state, head], lses[token, state, head] = found
    merged = OPERATOR.reference(problem, {"partial_out": parts, "partial_lse": lses})
    np.testing.assert_allclose(merged["out"], whole["out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged["lse"], whole["lse"], rtol=1e-6)


@pytest.mark.parametrize("empty", [-np.inf, np.inf])
def test_all_states_empty(empty: float) -> None:
    problem = MergeStates(2, 3, 1, 4, dtype="float32")
    inputs = {
        "partial_out": np.full((2, 3, 1, 4), np.nan, np.float32),
        "partial_lse": np.full((2, 3, 1), empty, np.float32),
    }
    inputs["partial_out"][1, 2] = 5
    inputs["partial_lse"][1, 2] = -4
    found = OPERATOR.reference(problem, inputs)
    assert found["out"][0].tolist() == [[0.0] * 4]
    assert found["lse"][0].tolist() == [-np.inf]
    assert found["out"][1].tolist() == [[5.0] * 4]
    assert found["lse"][1].tolist() == [-4.0]


def test_order_of_states_does_not_matter() -> None:
    problem = MergeStates(5, 6, 2, 8, dtype="float32")
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(1))
    turned = {name: array[:, ::-1] for name, array in inputs.items()}
    one, other = (OPERATOR.reference(problem, given) for given in (inputs, turned))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
        assert not np.isnan(one[name]).any()


def test_large_numbers_do_not_overflow() -> None:
    problem = MergeStates(1, 2, 1, 1, dtype="float32")
    for base in (-3e38, -800.0, 800.0, 3e38):
        inputs = {
            "partial_out": np.array([[[[2.0]], [[4.0]]]], np.float32),
            "partial_lse": np.array([[[base], [base]]], np.float32),
        }
        found = OPERATOR.reference(problem, inputs)
        assert found["out"].item() == 3.0
        assert found["lse"].item() == np.float32(np.float64(np.float32(base)) + np.log(2))


def test_inputs_hold_empty_states_with_poison() -> None:
    problem = MergeStates(8, 5, 3, 4)
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    lse = inputs["partial_lse"]
    assert (lse == -np.inf).any()
    assert (lse == np.inf).any()
    assert np.isinf(lse[0]).all()
    assert np.isnan(inputs["partial_out"].astype(np.float32)[np.isinf(lse)]).all()


def test_json_round_trip() -> None:
    problem = MergeStates(2, 3, 4, 5, dtype="float16")
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("2x3x4x5", dtype="float16") == problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"states": 0}, "states is 0; allowed: an integer >= 1"),
        ({"heads": True}, "heads is True"),
        ({"dtype": "float64"}, "dtype is 'float64'; allowed: float32, bfloat16, float16"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    sizes = {"tokens": 1, "states": 2, "heads": 3, "head_dim": 4}
    with pytest.raises(ProblemError, match=message):
        MergeStates(**{**sizes, **fields})
