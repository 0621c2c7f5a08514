"""Selection on the CPU, bit by bit against its references."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of
from tests.schedules.hard_rows import hard_rows
from tests.schedules.kernels import run_kernel

from wattune.ops import SelectBlocks, SelectUnion, operator
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

BLOCKS: tuple[tuple[SelectBlocks, dict[str, Any]], ...] = (
    (SelectBlocks(5, 3000, 3, block_size=16, token_budget=320), {"rows": 8}),
    (SelectBlocks(5, 3000, 3, 20, block_size=16, token_budget=320, sink_blocks=2), {"groups": 0}),
    (SelectBlocks(5, 9000, 2, block_size=1, method="fraction", fraction=0.01), {"chunk": 1024}),
    (SelectBlocks(5, 3000, 3, block_size=16, method="fraction", sink_blocks=1), {"lanes": 4}),
    (SelectBlocks(5, 3000, 3, block_size=16, method="threshold"), {}),
    (SelectBlocks(5, 3000, 4, 7, block_size=16, method="threshold", local_blocks=2), {}),
    (SelectBlocks(3, 100, 2, block_size=7, token_budget=21, query_tokens=9), {}),
    (SelectBlocks(3, 700, 2, block_size=1, token_budget=700, sink_blocks=5, local_blocks=9), {}),
    (SelectBlocks(3, 37, 3, block_size=64, local_blocks=0), {}),
)
UNIONS: tuple[tuple[SelectUnion, dict[str, Any]], ...] = (
    (SelectUnion(4, 300, 5, token_budget=64), {}),
    (SelectUnion(3, 5000, 6, 2, token_budget=700), {"chunk": 1024}),
    (SelectUnion(3, 200, 3, token_budget=33, middle_ratio=0.9), {"lanes": 4}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=0.0), {}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=1.0), {}),
    (SelectUnion(2, 50, 4, token_budget=100), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), (*BLOCKS, *UNIONS), ids=str)
def test_matches_the_reference(problem: Any, knobs: dict[str, Any]) -> None:
    if "lanes" in knobs and problem.operator == "select_blocks":
        knobs = {**knobs, "groups": 8, "sample": 0}
    check(problem, **knobs)


def scored(
    rows: Any, lengths: list[int], target: Target | None = None, **fields: Any
) -> dict[str, Any]:
    """Run rows [requests, scores] of one head, a block a token, and compare with the reference."""
    scores = np.asarray(rows, np.float32)[:, None]
    fields = {"block_size": 1, "local_blocks": 0, **fields}
    problem = SelectBlocks(len(scores), scores.shape[-1], 1, **fields)
    inputs = {"scores": scores, "seq_lens": np.array(lengths, np.int32)}
    found = run(problem, inputs, target)
    expected = operator(problem.operator).reference(problem, inputs)
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want)
    return found


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(None, id="native"),
        pytest.param(Target.parse("cpu:avx2"), id="avx2", marks=pytest.mark.isa("avx2", "fma")),
    ],
)
def test_hard_rows(target: Target | None) -> None:
    wide = hard_rows()
    lengths = [333, 333, 333, 333, 333, 333, 333, 333, 333, 333, 333, 0]
    scored(wide, lengths, target, token_budget=40)
    halves = [length // 2 for length in lengths]
    scored(wide, halves, target, token_budget=40, sink_blocks=3)
    scored(wide, halves, target, token_budget=333, forced="inside")
    scored(wide, lengths, target, token_budget=333, local_blocks=2)
    inside = {"local_blocks": 2, "sink_blocks": 2, "forced": "inside"}
    scored(wide, lengths, target, token_budget=30, **inside)
    # Ends of rows in every lane of a vector.
    scored(wide, list(range(321, 333)), target, token_budget=30, **inside)
    scored(wide, list(range(12)), target, token_budget=3)


def test_a_sample_that_misleads() -> None:
    # Every vector that is sampled is better than all others: the guess is too high.
    scores = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    for stride in (64, 128, 256):
        scores.reshape(-1, stride)[:, :16] += 100
    problem = SelectBlocks(1, 4096, 1, block_size=1, local_blocks=0, token_budget=1500)
    inputs = {"scores": scores[None, None], "seq_lens": np.array([4096], np.int32)}
    expected = operator(problem.operator).reference(problem, inputs)
    for sample in (16, 32):
        found = run(problem, inputs, groups=0, sample=sample)
        np.testing.assert_array_equal(found["block_indices"], expected["block_indices"])


def test_threshold_of_infinite_scores() -> None:
    inf, nan = np.inf, np.nan
    rows = [[0, inf, 4, inf], [nan, -inf, nan, -inf], [nan, 2, -inf, 1.9], [0, 0, 0, 0]]
    found = scored(rows, [4] * 4, method="threshold", threshold=0.3)
    assert found["block_counts"][:, 0].tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize("top", [1e4, 3e6, 1e7, 4e7, 1e8, 3e9, -1e8])
def test_threshold_of_great_scores(top: float) -> None:
    # From 2^24 on not every whole number is a float: a sum with the share's logarithm is rounded.
    less = np.array([0, 1, 2, 3, 4, 4, 5, 5.4, 6, 7, 8, 16])
    scored([top - less, top - 2 * less], [12] * 2, method="threshold", threshold=0.004)


@pytest.mark.parametrize(
    "problem",
    [
        SelectBlocks(3, 300, 2, 20, block_size=4, method="fraction", fraction=0.1),
        SelectBlocks(3, 300, 2, 20, block_size=4, method="threshold"),
        SelectBlocks(3, 300, 2, block_size=4, token_budget=64, sink_blocks=1),
        SelectUnion(3, 300, 4, token_budget=64),
    ],
    ids=str,
)
def test_contexts_beyond_the_bucket_and_fewer_requests(problem: Any) -> None:
    target = Target.native(1)
    template, values = values_of(problem, target, chunk=1024)
    op = operator(problem.operator)
    longer = dataclasses.replace(problem, context=9000, batch=2)
    inputs = op.verification_inputs(longer, np.random.default_rng(0))
    inputs["seq_lens"][1] = 8901
    found = run_kernel(problem, target, template, values, inputs)
    for name, want in op.reference(longer, inputs).items():
        np.testing.assert_array_equal(found[name], want)


@pytest.mark.parametrize("target", [Target.parse("cpu:generic", 2), Target.parse("cpu:avx2")])
@pytest.mark.parametrize(
    "problem",
    [
        SelectBlocks(3, 1000, 3, block_size=4, token_budget=80, query_tokens=2),
        SelectBlocks(3, 1000, 3, block_size=4, method="threshold"),
        SelectUnion(3, 300, 4, token_budget=64),
    ],
    ids=str,
)
def test_other_targets(problem: Any, target: Target) -> None:
    check(problem, target)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [BLOCKS[0][0], BLOCKS[5][0], UNIONS[1][0]], ids=str)
def test_sampled_schedules(problem: Any) -> None:
    target = Target.native(1)
    space = templates_for(problem, target)[0].space(problem, target)
    rng = np.random.default_rng(0)
    for _ in range(3):
        knobs: dict[str, Any] = space.sample(rng) or {}
        check(problem, **knobs)
