"""Pairs sorted by expert: vLLM's example, what blocks hold, the exact capacity, every field."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import MoeAlignBlockSize, operator, problem_from_json
from wattune.ops.operator import Array

OPERATOR = operator("moe_align_block_size")


def aligned(ids: Any, experts: int, expert_map: Any = None, **fields: Any) -> dict[str, list[int]]:
    """Sort the pairs of some tokens."""
    inputs = {"topk_ids": np.asarray(ids, np.int32)}
    if expert_map is not None:
        inputs["expert_map"] = np.asarray(expert_map, np.int32)
        fields["local_experts"] = max(expert_map) + 1
    problem = MoeAlignBlockSize(len(ids), experts, len(ids[0]), **fields)
    return {name: a.tolist() for name, a in OPERATOR.reference(problem, inputs).items()}


def test_the_example_of_vllm() -> None:
    ids = [[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]]
    found = aligned(ids, 6, block_size=4)
    first = [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    # Expert 0 and 5 have no pair and take no block.
    assert found["num_tokens_post_padded"] == [16]
    assert found["sorted_token_ids"] == first + [12] * 12
    assert found["expert_ids"] == [1, 2, 3, 4, 0, 0, 0]


def test_offsets() -> None:
    found = aligned([[2, 0], [0, 3], [2, 1]], 5, block_size=0)
    assert found["sorted_token_ids"] == [1, 2, 5, 0, 4, 3]
    assert found["expert_offsets"] == [0, 2, 3, 5, 6, 6]


def test_padding_and_unknown_ids_are_left_out() -> None:
    found = aligned([[2, -1], [7, 0], [-5, 4]], 4, block_size=2)
    assert found["num_tokens_post_padded"] == [4]
    assert found["sorted_token_ids"][:4] == [3, 6, 0, 6]
    assert found["expert_ids"][:2] == [0, 2]
    # The same expert twice: two pairs.
    assert aligned([[1, 1]], 2, block_size=2)["sorted_token_ids"] == [0, 1, 2, 2]


def test_experts_elsewhere() -> None:
    found = aligned([[2, 0], [1, 3]], 4, [1, -1, 0, -1], block_size=0)
    assert found["sorted_token_ids"] == [0, 1, 4, 4]
    assert found["expert_offsets"] == [0, 1, 2]
    nobody = {"topk_ids": np.zeros((3, 2), np.int32), "expert_map": np.full(4, -1, np.int32)}
    problem = MoeAlignBlockSize(3, 4, 2, 4, local_experts=2)
    found_none = OPERATOR.reference(problem, nobody)
    assert found_none["num_tokens_post_padded"].tolist() == [0]
    assert (found_none["sorted_token_ids"] == 6).all()


def check_blocks(problem: MoeAlignBlockSize, inputs: dict[str, Array]) -> None:
    """Every pair that is here exactly once; blocks hold one expert; order is that of the pairs."""
    found = OPERATOR.reference(problem, inputs)
    ids, pairs = inputs["topk_ids"].reshape(-1), inputs["topk_ids"].size
    where = inputs.get("expert_map", np.arange(problem.num_experts))
    local = [int(where[i]) if 0 <= i < problem.num_experts else -1 for i in ids]
    end = int(found["num_tokens_post_padded"][0])
    used = found["sorted_token_ids"][:end]
    assert sorted(used[used < pairs].tolist()) == [p for p in range(pairs) if local[p] >= 0]
    assert end % problem.block_size == 0
    blocks = used.reshape(-1, problem.block_size)
    for block, expert in zip(blocks, found["expert_ids"], strict=False):
        assert {local[p] for p in block[block < pairs]} == {int(expert)}
        assert (np.diff(block) >= 0).all()


@pytest.mark.parametrize("local", [0, 5])
def test_every_pair_once(local: int) -> None:
    for tokens, block in itertools.product((1, 7, 40), (1, 4, 16)):
        problem = MoeAlignBlockSize(tokens, 12, 3, block, local)
        for draw in (OPERATOR.make_inputs, OPERATOR.verification_inputs):
            check_blocks(problem, draw(problem, np.random.default_rng(tokens)))


def test_the_capacity_is_the_worst_case() -> None:
    for experts, block, tokens in itertools.product((1, 2, 3, 5), (1, 2, 3, 6), range(1, 9)):
        problem = MoeAlignBlockSize(tokens, experts, 1, block)
        worst = max(
            sum(-(-count // block) for count in counts)
            for counts in itertools.product(range(tokens + 1), repeat=experts)
            if sum(counts) == tokens
        )
        assert problem.extents["expert_blocks"] == worst
        assert problem.extents["sorted_slots"] == worst * block


def test_json_round_trip() -> None:
    problem = MoeAlignBlockSize(8, 64, 4, block_size=0, local_experts=16, skew=1.0)
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("8x64x4", block_size=4) == MoeAlignBlockSize(8, 64, 4, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 65}, "top_k is 65"),
        ({"block_size": -1}, "block_size is -1"),
        ({"local_experts": 65}, "local_experts is 65; allowed: an integer from 0 to 64"),
        ({"tokens": 0}, "tokens is 0"),
        ({"skew": -1.0}, "skew"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        MoeAlignBlockSize(**{"tokens": 1, "num_experts": 64, "top_k": 4, **fields})
