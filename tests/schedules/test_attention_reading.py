"""Default schedules of attention: how rows are read on CPUs of several vector lengths."""

from __future__ import annotations

import pytest

from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, Problem
from wattune.ops import TokenSparseDecodeAttention as TokenSparse
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

HEADS = (32, 8, 128)
DENSE = DecodeAttention(1, 4096, *HEADS)
BLOCKS = BlockSparseDecodeAttention(1, 4096, *HEADS, max_blocks=16)
TOKENS = TokenSparse(1, 4096, *HEADS)
KNOBS = ("block", "stretch", "prefetch", "wake", "level", "streams")


@pytest.mark.parametrize(
    ("target", "problem", "expected"),
    [
        ("cpu:avx2", DENSE, (64, 16, 16, 0, 2, None)),
        ("cpu:avx2", BLOCKS, (128, 16, 32, 0, 2, 2)),
        ("cpu:avx2", TOKENS, (128, 16, 16, 0, 2, None)),
        ("cpu:generic", DENSE, (64, 128, 64, 0, 2, None)),
        ("cpu:vnni", DENSE, (64, 128, 64, 0, 2, None)),
        ("cpu:vnni", BLOCKS, (128, 16, 32, 32, 2, 1)),
        ("cpu:vnni", TOKENS, (128, 16, 32, 0, 2, None)),
    ],
)
def test_rows_are_read_as_was_measured(
    target: str, problem: Problem, expected: tuple[int | None, ...]
) -> None:
    values = default_candidate(problem, Target.parse(target)).schedule.values
    assert tuple(values.get(name) for name in KNOBS) == expected
