"""Appending to a cache and merging states on the CPU against their references."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import KVCacheAppend, MergeStates, operator
from wattune.schedules.target import Target

APPENDS: tuple[tuple[KVCacheAppend, dict[str, Any]], ...] = (
    (KVCacheAppend(3, 50, 8, 128), {}),
    (KVCacheAppend(3, 50, 2, 192, value_dim=128, query_tokens=4, layout="NHD"), {"unroll": 2}),
    (KVCacheAppend(4, 40, 3, 37, value_dim=5, query_tokens=7, dtype="float16"), {"grain": 4}),
    (KVCacheAppend(3, 50, 3, 33, value_dim=80, dtype="float32", page_size=7), {"vector_bytes": 16}),
    (KVCacheAppend(3, 60, 2, 1, value_dim=3, query_tokens=33, layout="NHD", page_size=16), {}),
    # Requests shorter than the new tokens.
    (KVCacheAppend(3, 5, 2, 16, query_tokens=32, dtype="float32"), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), APPENDS, ids=str)
def test_append(problem: KVCacheAppend, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


def test_append_leaves_requests_without_room_for_a_row_alone() -> None:
    problem = KVCacheAppend(2, 4, 1, 8, query_tokens=3)
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(0))
    inputs["seq_lens"] = np.array([0, 2], np.int32)
    got = run(problem, inputs)
    for name in ("k_cache", "v_cache"):
        assert got[name][0].tobytes() == inputs[name][0].tobytes()
        # Two tokens fit: the last two of the three new ones.
        np.testing.assert_array_equal(got[name][1, 0, :2], inputs[name[0]][1, 1:, 0])
        np.testing.assert_array_equal(got[name][1, 0, 2:], inputs[name][1, 0, 2:])


def test_append_copies_bits() -> None:
    problem = KVCacheAppend(1, 4, 1, 40)
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(0))
    bits = np.random.default_rng(1).integers(0, 1 << 16, 40, dtype=np.uint16)
    inputs["k"].view(np.uint16)[0, 0, 0] = bits | 0x7F81  # signalling and quiet NaN
    got = run(problem, inputs)["k_cache"].view(np.uint16)
    np.testing.assert_array_equal(got[0, 0, 3], bits | 0x7F81)


MERGES: tuple[tuple[MergeStates, dict[str, Any]], ...] = (
    (MergeStates(5, 2, 4, 128), {}),
    (MergeStates(4, 3, 3, 80, dtype="float32"), {"columns": 2}),
    (MergeStates(6, 1, 2, 5), {}),
    (MergeStates(3, 17, 2, 192, dtype="float16"), {"grain": 2}),
    (MergeStates(3, 33, 5, 37, dtype="float32"), {"lanes": 4, "columns": 4}),
    (MergeStates(3, 4, 2, 1), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), MERGES, ids=str)
def test_merge(problem: MergeStates, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


def test_merge_of_far_apart_states_takes_the_greater() -> None:
    problem = MergeStates(1, 2, 1, 16, dtype="float32")
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(0))
    inputs["partial_lse"][...] = [[[3e38], [-3e38]]]
    got = run(problem, inputs)
    np.testing.assert_array_equal(got["out"][0, 0], inputs["partial_out"][0, 0, 0])
    assert got["lse"][0, 0] == np.float32(3e38)


@pytest.mark.parametrize("target", ["cpu:generic", "cpu:avx2"])
@pytest.mark.parametrize(
    "problem", [KVCacheAppend(2, 20, 2, 72, query_tokens=3), MergeStates(3, 5, 2, 72)], ids=str
)
def test_other_targets(problem: Any, target: str) -> None:
    check(problem, Target.parse(target))


@pytest.mark.parametrize(
    "problem", [KVCacheAppend(5, 20, 2, 72, query_tokens=3), MergeStates(9, 5, 4, 72)], ids=str
)
def test_fewer_requests_on_two_threads(problem: Any) -> None:
    target = Target.parse("cpu:generic", 2)
    template, values = values_of(problem, target, grain=2)
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(2))
    few = {name: array[:3] for name, array in inputs.items()}
    got = run_kernel(problem, target, template, values, few)
    smaller = dataclasses.replace(problem, **{problem.runtime[0]: 3})
    assert_matches(problem, got, op.reference(smaller, few))
