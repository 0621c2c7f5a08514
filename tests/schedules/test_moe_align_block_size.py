"""Sorting of pairs on the CPU against its reference: blocks, offsets, experts elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, values_of
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import MoeAlignBlockSize, operator
from wattune.schedules.target import Target

OPERATOR = operator("moe_align_block_size")


@pytest.mark.parametrize(
    ("problem", "knobs"),
    [
        (MoeAlignBlockSize(16, 256, 8), {}),
        # Few pairs for so many experts.
        (MoeAlignBlockSize(8, 256, 8), {}),
        (MoeAlignBlockSize(2, 333, 5, block_size=1), {}),
        (MoeAlignBlockSize(6, 128, 4, block_size=4, local_experts=127), {}),
        (MoeAlignBlockSize(700, 256, 8), {"ranges": 4, "grain": 1024}),
        (MoeAlignBlockSize(7, 6, 3, block_size=4), {"ranges": 1}),
        (MoeAlignBlockSize(500, 64, 4, block_size=0), {"grain": 1024}),
        (MoeAlignBlockSize(50, 64, 4, block_size=32, local_experts=16), {}),
        (MoeAlignBlockSize(50, 64, 4, block_size=0, local_experts=1), {}),
        (MoeAlignBlockSize(1, 1, 1), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_matches_the_reference(
    problem: MoeAlignBlockSize, knobs: dict[str, Any], threads: int
) -> None:
    check(problem, Target.native(threads), **knobs)


def test_more_and_fewer_tokens_than_the_bucket() -> None:
    problem = MoeAlignBlockSize(300, 20, 4, block_size=8)
    target = Target.native(2)
    template, values = values_of(problem, target, grain=1024)
    for tokens in (1, 299, 1000):
        other = dataclasses.replace(problem, tokens=tokens)
        inputs = OPERATOR.verification_inputs(other, np.random.default_rng(tokens))
        # The sizes of outputs follow from the tokens of this call.
        made = dataclasses.replace(other)
        found = run_kernel(made, target, template, values, inputs)
        assert_matches(other, found, OPERATOR.reference(other, inputs))


@pytest.mark.parametrize("case", ["one expert", "nobody", "all but one elsewhere"])
def test_lopsided_routing(case: str) -> None:
    problem = MoeAlignBlockSize(200, 32, 4, block_size=16)
    ids = np.full((200, 4), 31 if case == "one expert" else -1, np.int32)
    if case == "all but one elsewhere":
        ids[117, 2] = 0
    target = Target.native(1)
    template, values = values_of(problem, target)
    found = run_kernel(problem, target, template, values, {"topk_ids": ids})
    assert_matches(problem, found, OPERATOR.reference(problem, {"topk_ids": ids}))


@pytest.mark.parametrize("count", [15, 16, 17])
@pytest.mark.parametrize("expert", [0, 62, 63, 64])
def test_few_pairs_up_to_a_block_of_one_expert(expert: int, count: int) -> None:
    """One more does not fit its block: it would be taken for one of the next expert."""
    problem = MoeAlignBlockSize(count + 3, 128, 1, block_size=16)
    ids = np.full((count + 3, 1), expert, np.int32)
    ids[[0, 5, count], 0] = expert + 1, 127, expert + 1
    target = Target.native(1)
    template, values = values_of(problem, target)
    found = run_kernel(problem, target, template, values, {"topk_ids": ids})
    assert_matches(problem, found, OPERATOR.reference(problem, {"topk_ids": ids}))
