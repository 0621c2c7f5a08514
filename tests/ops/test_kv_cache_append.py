"""Appending to caches: a plain loop, rows that stay, every field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import KVCacheAppend, operator, problem_from_json

OPERATOR = operator("kv_cache_append")
PROBLEMS = (
    KVCacheAppend(4, 12, 2, 8),
    KVCacheAppend(4, 12, 2, 8, value_dim=5, query_tokens=5, layout="NHD", dtype="float32"),
    KVCacheAppend(4, 12, 3, 4, query_tokens=3, page_size=5, dtype="float16"),
    KVCacheAppend(3, 12, 3, 4, query_tokens=16, page_size=4, layout="NHD"),
)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_equals_a_plain_loop(problem: KVCacheAppend) -> None:
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    expected = {name: inputs[name].copy() for name in ("k_cache", "v_cache")}
    written = 0
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        for token in range(problem.query_tokens):
            position = length - problem.query_tokens + token
            for head in range(problem.kv_heads) if position >= 0 else ():
                lead, at = request, position
                if problem.page_size:
                    lead = inputs["page_table"][request, position // problem.page_size]
                    at = position % problem.page_size
                index = (lead, head, at) if problem.layout == "HND" else (lead, at, head)
                for name in ("k", "v"):
                    expected[f"{name}_cache"][index] = inputs[name][request, token, head]
                written += 1
    assert written
    found = OPERATOR.reference(problem, inputs)
    assert found.keys() == expected.keys()
    for name, cache in expected.items():
        assert found[name].tobytes() == cache.tobytes()
        # The reference changes no input.
        assert found[name].tobytes() != inputs[name].tobytes()


def test_inputs_hold_requests_shorter_than_the_new_tokens() -> None:
    problem = PROBLEMS[1]
    lengths = OPERATOR.verification_inputs(problem, np.random.default_rng(0))["seq_lens"]
    assert (lengths < problem.query_tokens).any()
    assert (lengths <= problem.context).all()


def test_caches_are_states_that_change() -> None:
    arguments = {a.name: a for a in OPERATOR.arguments(PROBLEMS[2])}
    assert [name for name, a in arguments.items() if a.updated] == ["k_cache", "v_cache"]
    assert "page_table" in arguments
    assert "page_table" not in {a.name for a in OPERATOR.arguments(PROBLEMS[0])}
    assert PROBLEMS[0].shared_data() != PROBLEMS[1].shared_data()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_json_round_trip(problem: KVCacheAppend) -> None:
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_shape_notation() -> None:
    assert OPERATOR.parse_shape("4x12x2x8") == PROBLEMS[0]
    with pytest.raises(ProblemError, match="BATCHxCONTEXTxKV_HEADSxHEAD_DIM"):
        OPERATOR.parse_shape("4x12x2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_tokens": 0}, "query_tokens is 0; allowed: an integer >= 1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"layout": "HDN"}, "layout is 'HDN'; allowed: HND, NHD"),
        ({"page_size": -4}, "page_size is -4"),
        ({"value_dim": 1.5}, "value_dim is 1.5"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        KVCacheAppend(1, 10, 2, 64, **fields)
