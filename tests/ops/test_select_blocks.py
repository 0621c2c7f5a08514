"""Selection of blocks: hand-made scores, a plain loop, what counts, every field."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import SelectBlocks, operator, problem_from_json
from wattune.ops.select_blocks import select

OPERATOR = operator("select_blocks")
NAN, INF = float("nan"), float("inf")


def chosen(scores: list[float], **fields: Any) -> list[int]:
    """Select from one row of scores; a block is one token."""
    fields = {"local_blocks": 0, "block_size": 1, **fields}
    problem = SelectBlocks(1, len(scores), 1, **fields)
    return [int(block) for block in select(problem, np.array(scores, np.float32))]


def test_budget() -> None:
    scores = [1.0, 5.0, 3.0, 4.0, 2.0]
    assert chosen(scores, token_budget=2) == [1, 3]
    assert chosen(scores, token_budget=9) == [0, 1, 2, 3, 4]
    assert chosen(scores, token_budget=2, block_size=1) == [1, 3]


def test_forced_blocks_beside_the_best_ones() -> None:
    scores = [1.0, 5.0, 3.0, 4.0, 2.0]
    assert chosen(scores, token_budget=2, local_blocks=1) == [1, 3, 4]
    assert chosen(scores, token_budget=2, local_blocks=1, sink_blocks=1) == [0, 1, 3, 4]
    # The last block is among the best: nothing is added.
    assert chosen([1.0, 5.0, 3.0, 2.0, 9.0], token_budget=2, local_blocks=1) == [1, 4]


def test_forced_blocks_inside_the_number() -> None:
    inside = {"forced": "inside", "token_budget": 3}
    scores = [1.0, 5.0, 3.0, 4.0, 2.0]
    assert chosen(scores, local_blocks=1, **inside) == [1, 3, 4]
    assert chosen(scores, local_blocks=2, sink_blocks=1, **inside) == [0, 3, 4]
    # There are more of them than n: all are kept.
    assert chosen(scores, local_blocks=2, sink_blocks=2, **inside) == [0, 1, 3, 4]
    assert chosen(scores[:2], local_blocks=2, sink_blocks=2, **inside) == [0, 1]


def test_fewer_places_than_blocks() -> None:
    scores = [1.0, 5.0, 3.0, 4.0, 2.0]
    assert chosen(scores, token_budget=3, local_blocks=1, max_blocks=3) == [1, 3, 4]
    assert chosen(scores, token_budget=4, local_blocks=1, max_blocks=2) == [1, 4]
    assert chosen(scores, method="threshold", threshold=1e-9, max_blocks=2) == [1, 3]


def test_ties_and_nan() -> None:
    assert chosen([2.0, 3.0, 3.0, 3.0], token_budget=2) == [1, 2]
    assert chosen([0.0, -0.0, 0.0], token_budget=2) == [0, 1]
    assert chosen([-0.0, 0.0, 0.0], token_budget=2) == [0, 1]
    assert chosen([NAN, 1.0, -INF, NAN], token_budget=2) == [0, 1]
    assert chosen([-INF, NAN, -NAN, 0.0], token_budget=3) == [0, 1, 3]
    assert chosen([INF, NAN, 7.0, INF], token_budget=2) == [0, 3]


def test_threshold() -> None:
    probabilities = [0.1, 0.4, 0.2, 0.25, 0.05]
    scores = [math.log(p) + 3 for p in probabilities]
    threshold = {"method": "threshold", "threshold": 0.15}
    assert chosen(scores, **threshold) == [1, 2, 3]
    assert chosen(scores, local_blocks=1, sink_blocks=1, **threshold) == [0, 1, 2, 3, 4]
    assert chosen([0.0] * 4, method="threshold", threshold=0.26) == []
    # Strictly greater, in the softmax's terms.
    assert chosen([1.0], method="threshold", threshold=1.0) == []
    assert chosen([NAN, -INF], method="threshold", threshold=0.1) == []
    assert chosen([NAN, 2.0, -INF], method="threshold", threshold=0.1) == [1]
    assert chosen([0.0, INF, 4.0, INF], method="threshold", threshold=0.4) == [1, 3]


def test_fraction() -> None:
    # ReSA: max(ceil(N p), min(N, least)); n counts the last block.
    def number(blocks: int, **fields: Any) -> int:
        return SelectBlocks(1, blocks, 1, block_size=1, method="fraction", **fields).best(blocks)

    assert number(1000) == 100
    assert number(1001) == 101
    assert number(100) == 16
    assert number(9) == 9
    # 30 * 0.1 is above 3 in floating point.
    assert number(30, fraction=0.1) == 3
    assert number(30, fraction=0.1, min_blocks=5) == 5
    scores = [1.0, 5.0, 3.0, 4.0, 2.0]
    fields = {"method": "fraction", "fraction": 0.6, "local_blocks": 1}
    assert chosen(scores, **fields) == [1, 3, 4]
    assert chosen(scores, method="fraction", fraction=1.0) == [0, 1, 2, 3, 4]


def in_a_loop(problem: SelectBlocks, scores: list[float]) -> list[int]:
    """Take blocks one at a time."""
    blocks = len(scores)
    clean = [-INF if math.isnan(s) else s for s in scores]
    always = {j for j in range(blocks) if j < problem.sink_blocks}
    always |= {j for j in range(blocks) if j >= blocks - problem.local_blocks}
    ranked = sorted(range(blocks), key=lambda j: (-clean[j], j))
    best = problem.best(blocks)
    found = set(always)
    if problem.forced == "beside":
        ranked = ranked[:best]
    for j in ranked:
        full = problem.forced == "inside" and len(found) >= best
        if not full and len(found | {j}) <= problem.max_blocks:
            found.add(j)
    return sorted(found)


@pytest.mark.parametrize("forced", ["beside", "inside"])
@pytest.mark.parametrize("most", [0, 9])
def test_equals_a_plain_loop(forced: str, most: int) -> None:
    rng = np.random.default_rng(0)
    for blocks in (1, 3, 7, 8, 9, 30):
        problem = SelectBlocks(
            1,
            30,
            1,
            most,
            block_size=1,
            token_budget=8,
            sink_blocks=1,
            local_blocks=2,
            forced=forced,
        )
        scores = np.round(rng.normal(0, 2, blocks)).astype(np.float32)
        scores[rng.random(blocks) < 0.3] = NAN
        assert select(problem, scores).tolist() == in_a_loop(problem, scores.tolist())


def test_rows_and_counts() -> None:
    problem = SelectBlocks(4, 100, 2, block_size=8, token_budget=16, sink_blocks=1)
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    found = OPERATOR.reference(problem, inputs)
    indices, counts = found["block_indices"], found["block_counts"]
    assert indices.shape == (4, 2, 4)
    assert problem.max_blocks == 4
    for request, length in enumerate(inputs["seq_lens"]):
        blocks = -(-int(length) // 8)
        for head in range(2):
            row, count = indices[request, head], counts[request, head]
            expected = select(problem, inputs["scores"][request, head, :blocks])
            assert row[:count].tolist() == expected.tolist()
            assert (row[count:] == -1).all()
    assert counts[-1].tolist() == [0, 0]


def test_each_query_token_sees_its_own_length() -> None:
    problem = SelectBlocks(2, 20, 1, block_size=4, token_budget=4, query_tokens=3)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    inputs["seq_lens"] = np.array([10, 2], np.int32)
    inputs["scores"][...] = np.arange(5)
    found = OPERATOR.reference(problem, inputs)["block_indices"]
    # Lengths 8, 9, 10 and 0, 1, 2: the last block has the best score.
    assert found[:, :, 0, 0].tolist() == [[1, 2, 2], [-1, 0, 0]]


def test_inputs_stay_away_from_the_threshold() -> None:
    problem = SelectBlocks(2, 4000, 2, block_size=8, method="threshold")
    for draw in (OPERATOR.make_inputs, OPERATOR.verification_inputs):
        inputs = draw(problem, np.random.default_rng(3))
        for request, length in enumerate(inputs["seq_lens"]):
            for row in inputs["scores"][request, :, : -(-int(length) // 8)]:
                finite = row[np.isfinite(row)].astype(np.float64)
                if len(finite):
                    weights = np.exp(finite - finite.max())
                    assert (np.abs(np.log(weights / weights.sum() / 0.004)) > 5e-4).all()


def test_json_round_trip() -> None:
    for fields in (
        {},
        {"method": "fraction"},
        {"method": "fraction", "fraction": 0.25},
        {"method": "threshold", "max_blocks": 9},
        {"forced": "inside", "sink_blocks": 2, "query_tokens": 4},
    ):
        problem = SelectBlocks(2, 1000, 2, **fields)
        assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    parsed = OPERATOR.parse_shape("2x1000x2", forced="inside", sink_blocks=2, query_tokens=4)
    assert parsed == problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "best"}, "method is 'best'"),
        ({"token_budget": 63}, r"token_budget is 63; allowed: at least block_size \(64\)"),
        ({"threshold": 0.1}, "threshold is 0.1; allowed: 0 with method budget"),
        ({"method": "threshold", "token_budget": 64}, "token_budget"),
        ({"method": "threshold", "forced": "inside"}, "forced is 'inside'; allowed: beside"),
        ({"method": "fraction", "fraction": 1.1}, "from 0 to 1"),
        ({"method": "fraction", "fraction": -0.1}, "fraction"),
        ({"max_blocks": 3, "sink_blocks": 2, "local_blocks": 2}, r"sink_blocks \+ local_blocks"),
        ({"local_blocks": -1}, "local_blocks"),
        ({"forced": "between"}, "forced"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        SelectBlocks(1, 1000, 2, **fields)
