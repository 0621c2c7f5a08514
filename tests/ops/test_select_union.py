"""The union of heads' best tokens: hand-made ranks, a plain loop, properties, fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import SelectUnion, operator, problem_from_json
from wattune.ops.select_union import unite

OPERATOR = operator("select_union")


def in_turn(problem: SelectUnion, logits: Any) -> list[int]:
    """Join heads' lists one token at a time, as the paper's code does."""
    length = logits.shape[1]
    if length <= problem.token_budget:
        return list(range(length))
    candidates = range(problem.sinks, length - problem.recent)
    ranked = [sorted(candidates, key=lambda t: (-row[t], t))[: problem.middle] for row in logits]
    found: list[int] = []
    for rank in range(problem.middle):
        for tokens in ranked:
            if tokens[rank] not in found and len(found) < problem.middle:
                found.append(tokens[rank])
    recent = range(length - problem.recent, length)
    return sorted([*range(problem.sinks), *found, *recent])


@pytest.mark.parametrize("length", [5, 20, 21, 60])
@pytest.mark.parametrize("ratio", [0.0, 0.75, 1.0])
def test_equals_a_plain_loop(length: int, ratio: float) -> None:
    problem = SelectUnion(1, 60, 5, token_budget=20, middle_ratio=ratio)
    rng = np.random.default_rng(length)
    for decimals in (6, 0):
        logits = rng.standard_normal((5, length)).round(decimals).astype(np.float32)
        found = unite(problem, logits)
        assert found.tolist() == in_turn(problem, logits)
        assert len(set(found.tolist())) == min(20, length)


def test_hand_made_ranks() -> None:
    # Head 0 ranks 3, 4, 5; head 1 ranks 3, 6, 4: the union takes 3, (3), 4, 6.
    problem = SelectUnion(1, 9, 2, token_budget=6, middle_ratio=0.5, sink_tokens=1)
    assert (problem.middle, problem.sinks, problem.recent) == (3, 1, 2)
    logits = np.zeros((2, 9), np.float32)
    logits[0, [3, 4, 5]] = 9, 8, 7
    logits[1, [3, 6, 4]] = 9, 8, 7
    assert unite(problem, logits).tolist() == [0, 3, 4, 6, 7, 8]


def test_sinks_are_taken_out_of_the_recent_share() -> None:
    problem = SelectUnion(1, 4096, 32)
    assert (problem.middle, problem.sinks, problem.recent) == (1536, 4, 508)
    without = SelectUnion(1, 4096, 32, token_budget=12, middle_ratio=0.75)
    assert (without.middle, without.sinks, without.recent) == (9, 0, 3)


def test_every_request_has_its_own_list() -> None:
    problem = SelectUnion(3, 90, 4, token_budget=16)
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    found = OPERATOR.reference(problem, inputs)
    for request, length in enumerate(inputs["seq_lens"]):
        row = found["token_indices"][request]
        count = found["token_counts"][request]
        assert count == min(length, 16)
        assert row[:count].tolist() == sorted(set(row[:count].tolist()))
        assert (row[count:] == -1).all()
        assert (row < length).all()


def test_order_of_heads_changes_the_last_rank_only() -> None:
    problem = SelectUnion(1, 400, 8, token_budget=64)
    logits = np.random.default_rng(1).standard_normal((8, 400), dtype=np.float32)
    one, other = (set(unite(problem, part).tolist()) for part in (logits, logits[::-1]))
    assert len(one - other) < 8


def test_group_lists_are_those_of_their_heads_alone() -> None:
    problem = SelectUnion(2, 100, 6, 2, token_budget=16)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(2))
    found = OPERATOR.reference(problem, inputs)["token_indices"]
    alone = SelectUnion(2, 100, 3, token_budget=16)
    for group in range(2):
        part = {**inputs, "logits": inputs["logits"][:, 3 * group : 3 * group + 3]}
        expected = OPERATOR.reference(alone, part)["token_indices"]
        np.testing.assert_array_equal(found[:, group], expected)


def test_json_round_trip() -> None:
    problem = SelectUnion(2, 100, 6, 2, token_budget=16, middle_ratio=1)
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    parsed = OPERATOR.parse_shape("2x100x6", kv_heads=2, token_budget=16, middle_ratio=1.0)
    assert parsed == problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_budget": 0}, "token_budget is 0"),
        ({"middle_ratio": 1.5}, "from 0 to 1"),
        ({"middle_ratio": float("nan")}, "middle_ratio"),
        ({"kv_heads": 5}, "a multiple of kv_heads"),
        ({"sink_tokens": -1}, "sink_tokens"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        SelectUnion(1, 100, 32, **fields)
