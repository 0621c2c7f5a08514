"""Spaces, defaults and counts of attention on GPUs; nothing is built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import HOPPER

from wattune.ops import operator
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a")
PROBLEMS: tuple[Any, ...] = (
    DecodeAttention(16, 32768, 64, 8, 128),
    DecodeAttention(1, 131072, 32, 32, 128, page_size=16),
    DecodeAttention(16, 32768, 64, 4, 192, value_dim=128, query_tokens=4),
    DecodeAttention(1, 64, 1, 1, 16),
    DecodeAttention(4, 4096, 16, 1, 256, query_tokens=8),
    BlockSparseDecodeAttention(16, 32768, 64, 8, 128, max_blocks=52, query_tokens=8),
    TokenSparseDecodeAttention(1, 32768, 32, 8, 128),
)
# What a read of HBM takes times the H200's rate, a share for each SM: 4.8 TB/s * 700 ns / 132.
LATENCY_BYTES = 25_000


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_defaults_and_samples_fit(problem: Any, arch: str) -> None:
    target = Target.parse(f"cuda:{arch}")
    candidate = default_candidate(problem, target)
    template = template_of(candidate)
    space = template.space(problem, target)
    rng = np.random.default_rng(0)
    for values in (candidate.schedule.values, space.sample(rng), space.sample(rng)):
        assert values is not None
        space.check(values)
        found = template.counts(problem, target, values)
        assert found.bytes["l2"] >= 0.9 * found.bytes["memory"] > 0
        assert found.parallelism > 0 and found.registers <= 255
        assert template.sizes(problem, target, values)["workspace_bytes"] >= 0
    names = {knob.name: knob.values for knob in space.knobs}
    assert ("bulk" in names["copies"]) is (arch == "sm_90a")


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[1], PROBLEMS[2], PROBLEMS[5]], ids=str)
def test_defaults_keep_memory_busy(problem: Any) -> None:
    """Twice the bytes that a read's latency takes are on their way, and all SMs have work."""
    candidate = default_candidate(problem, HOPPER)
    found = template_of(candidate).counts(problem, HOPPER, candidate.schedule.values)
    assert found.tiles["ahead"] >= 2 * LATENCY_BYTES
    waves = found.parallelism / HOPPER.cores
    assert waves / np.ceil(waves) >= 0.8


def test_shared_memory_holds_rings_and_then_sums() -> None:
    problem = PROBLEMS[2]
    candidate = default_candidate(problem, HOPPER)
    values = {**candidate.schedule.values, "stages": 8, "keys": 32}
    assert not template_of(candidate).space(problem, HOPPER).contains(values)
    assert operator(problem.operator).name == candidate.schedule.template
