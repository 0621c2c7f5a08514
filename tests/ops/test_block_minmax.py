"""Bounds of key blocks: the reference against a plain loop, which blocks change, fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import BlockMinmax, operator, problem_from_json

OPERATOR = operator("block_minmax")


def expected_of(problem: BlockMinmax, inputs: dict[str, Any]) -> dict[str, Any]:
    found = {name: inputs[name].copy() for name in ("k_min", "k_max")}
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        new = problem.query_tokens or length
        changed = {p // problem.block_size for p in range(max(0, length - new), length)}
        for block in changed:
            for head in range(problem.kv_heads):
                keys = []
                for position in range(block * problem.block_size, length)[: problem.block_size]:
                    row, at = request, position
                    if problem.page_size:
                        row = inputs["page_table"][request][position // problem.page_size]
                        at = position % problem.page_size
                    place = (row, head, at) if problem.layout == "HND" else (row, at, head)
                    keys.append(inputs["k_cache"][place].astype(np.float64))
                found["k_min"][request, head, block] = np.min(keys, 0)
                found["k_max"][request, head, block] = np.max(keys, 0)
    return found


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        BlockMinmax(3, 50, 2, 8),
        BlockMinmax(3, 50, 2, 8, query_tokens=0, layout="NHD"),
        BlockMinmax(3, 50, 2, 8, query_tokens=17, page_size=5, dtype="float16"),
        BlockMinmax(2, 40, 1, 8, 4, query_tokens=9, page_size=8, layout="NHD", dtype="float32"),
    ],
    ids=str,
)
def test_equals_a_plain_loop(problem: BlockMinmax, hard: bool) -> None:
    draw = OPERATOR.verification_inputs if hard else OPERATOR.make_inputs
    inputs = draw(problem, np.random.default_rng(0))
    got = OPERATOR.reference(problem, inputs)
    for name, want in expected_of(problem, inputs).items():
        assert np.isfinite(got[name].astype(np.float32)).all()
        assert got[name].tobytes() == want.tobytes()


def test_token_by_token_equals_a_rebuild() -> None:
    problem = BlockMinmax(2, 37, 2, 8)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(1))
    lengths = np.array([37, 20], np.int32)
    whole = {**inputs, "seq_lens": lengths}
    rebuilt = OPERATOR.reference(BlockMinmax(2, 37, 2, 8, query_tokens=0), whole)
    for step in range(1, 38):
        inputs["seq_lens"] = np.minimum(step, lengths).astype(np.int32)
        inputs.update(OPERATOR.reference(problem, inputs))
    for name, want in rebuilt.items():
        np.testing.assert_array_equal(inputs[name], want)


@pytest.mark.parametrize(
    ("length", "tokens", "blocks"),
    [
        (0, 1, range(0)),
        (1, 1, range(1)),
        (16, 1, range(1)),
        (17, 1, range(1, 2)),
        (17, 2, range(2)),
        (17, 99, range(2)),
        (40, 0, range(3)),
    ],
)
def test_blocks_that_change(length: int, tokens: int, blocks: range) -> None:
    found = BlockMinmax(1, 64, 1, 8, query_tokens=tokens).changed(length)
    assert list(found) == list(blocks)


def test_slots_of_fewer_blocks_are_enough_for_their_blocks() -> None:
    problem = BlockMinmax(1, 50, 1, 8, query_tokens=0)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(1))
    full = OPERATOR.reference(problem, inputs)
    for name in ("k_min", "k_max"):
        inputs[name] = inputs[name][:, :, :2]
    for name, found in OPERATOR.reference(problem, inputs).items():
        np.testing.assert_array_equal(found, full[name][:, :, :2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0),
        ("block_size", 0),
        ("query_tokens", -1),
        ("page_size", -1),
        ("layout", "NDH"),
        ("dtype", "int8"),
        ("head_dim", True),
    ],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    fields = {"batch": 1, "context": 64, "kv_heads": 1, "head_dim": 8, field: value}
    with pytest.raises(ProblemError, match=field):
        BlockMinmax(**fields)


def test_json_and_shape() -> None:
    problem = BlockMinmax(1, 64, 2, 8, 32, query_tokens=0, page_size=16, layout="NHD")
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("1x64x2x8", block_size=32) == BlockMinmax(1, 64, 2, 8, 32)
    with pytest.raises(ProblemError, match="BATCHxCONTEXTxKV_HEADSxHEAD_DIM"):
        OPERATOR.parse_shape("1x64x2")


def test_work_counts_the_changed_blocks() -> None:
    # Block 3 holds 48 to 49: two keys are read, two bounds written.
    work = OPERATOR.work(BlockMinmax(2, 50, 3, 8))
    assert work.bytes == 2 * 3 * 8 * (2 + 2) * 2
    assert OPERATOR.work(BlockMinmax(2, 50, 3, 8, query_tokens=0)).bytes == 6 * 8 * (50 + 8) * 2
