"""Attention at lengths around blocks and at a long odd one, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import (
    BlockSparseDecodeAttention,
    DecodeAttention,
    QuantizedDecodeAttention,
    operator,
)
from wattune.ops.attention import Attention
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 8191)
BATCH = len(LENGTHS)


@pytest.mark.parametrize(
    "problem",
    [
        DecodeAttention(BATCH, 8191, 4, 1, 64, return_lse=True),
        BlockSparseDecodeAttention(BATCH, 8191, 4, 1, 64, max_blocks=20),
        QuantizedDecodeAttention(BATCH, 8191, 4, 1, 64, return_lse=True),
    ],
    ids=lambda problem: problem.operator,
)
def test_lengths(problem: Attention) -> None:
    op, target = operator(problem.operator), Target.native(threads=1)
    inputs = op.make_inputs(problem, np.random.default_rng(0))
    inputs["seq_lens"] = np.array(LENGTHS, np.int32)
    candidate = default_candidate(problem, target)
    template, values = template_of(candidate), candidate.schedule.values
    assert_matches(
        problem,
        run_kernel(problem, target, template, values, inputs),
        op.reference(problem, inputs),
    )
