"""Points of the spaces of attention templates: default, sampled, counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import Compiled, ragged, values_of, without_tiles

from wattune.ops.attention import Attention
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.rectify_attention import RectifyAttention
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention
from wattune.schedules.target import CPU_PROFILES, Target
from wattune.schedules.template import templates_for

SIZES = (5, 200, 12, 2, 64)
PROBLEMS: tuple[Attention, ...] = (
    DecodeAttention(*SIZES, 96, 2, return_lse=True),
    BlockSparseDecodeAttention(*SIZES, max_blocks=9, block_size=24, page_size=16),
    TokenSparseDecodeAttention(*SIZES, max_tokens=150, window=120),
    RectifyAttention(*SIZES, query_tokens=5),
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_sampled_schedules(problem: Any, seed: int) -> None:
    target = Target.native(1)
    template = templates_for(problem, target)[0]
    point = template.space(problem, target).sample(np.random.default_rng(seed))
    assert point is not None
    compiled = Compiled(problem, target, **point)
    compiled.check(ragged(problem, (200, 0, 1, 130, 64), seed))


@pytest.mark.parametrize("profile", CPU_PROFILES)
@pytest.mark.parametrize("threads", [1, 16])
def test_spaces_are_not_too_small_and_not_too_large(profile: str, threads: int) -> None:
    target = Target("cpu", "x86_64", CPU_PROFILES[profile], cores=max(16, threads), threads=threads)
    for group, tokens in ((1, 1), (4, 1), (6, 1), (16, 1), (8, 4)):
        problem = DecodeAttention(1, 4096, 2 * group, 2, 128, query_tokens=tokens)
        template = templates_for(problem, target)[0]
        space = template.space(problem, target)
        assert 100 < space.size() < 40000
        space.check(space.default())
        counts = template.counts(problem, target, space.default())
        products = counts.operations.get("dot", 0) + counts.operations.get("tile", 0)
        assert products > 0 and counts.parallelism >= min(threads, 8)


def test_counts_follow_the_schedule() -> None:
    target = without_tiles(Target.parse("cpu:amx"))
    problem = DecodeAttention(1, 4096, 32, 8, 128)
    template = templates_for(problem, target)[0]
    default = template.space(problem, target).default()

    def counted(**knobs: Any) -> dict[str, float]:
        return template.counts(problem, target, {**default, **knobs}).operations

    # Per key: 4 rows by 4 vectors of pairs, and 4 rows by 8 vectors of columns for two keys.
    assert counted()["dot"] == 4096 * 8 * (4 * 4 + 4 * 8 / 2)
    assert counted(scores="fma", values="fma")["dot"] == 2 * counted()["dot"]
    assert counted(prefetch=0)["prefetch"] == 0


def test_tiles_are_counted() -> None:
    target = Target.parse("cpu:amx")
    problem = DecodeAttention(1, 4096, 32, 8, 128)
    template = templates_for(problem, target)[0]
    default = template.space(problem, target).default()
    counted = template.counts(problem, target, default).operations
    # Of 16 keys: 4 products of 32 columns; of 32 keys: 8 products of 16 columns.
    assert counted["tile"] == 8 * (4096 / 16 * 4 + 4096 / 32 * 8)
    assert template.counts(problem, target, {**default, "prefetch": 0}).operations["prefetch"] == 0


def test_the_workspace_does_not_depend_on_the_context() -> None:
    target = Target.parse("cpu:avx512", 4)
    sizes = set()
    for context in (100, 100000):
        problem = DecodeAttention(1, context, 32, 8, 128)
        template = templates_for(problem, target)[0]
        values = {**template.space(problem, target).default(), "splits": 8}
        sizes.add(template.sizes(problem, target, values)["workspace_bytes"])
    assert len(sizes) == 1


def asked(level: int, wake: int) -> dict[str, int]:
    """Count the prefetch instructions of a kernel by their name."""
    import tvm

    problem = BlockSparseDecodeAttention(1, 4096, 8, 2, 128, max_blocks=8)
    target = Target.parse("cpu:avx512")
    template, values = values_of(problem, target, level=level, wake=wake)
    function = template.lower(problem, target, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(target.llvm()))
    return Counter(re.findall(r"prefetch\w+", str(module.inspect_source("asm"))))


def test_defaults_depend_on_the_first_cache() -> None:
    problem = BlockSparseDecodeAttention(1, 4096, 8, 2, 128, max_blocks=8, block_size=48)
    dense = DecodeAttention(1, 4096, 8, 2, 128)
    features = (*CPU_PROFILES["avx512"], "avx512_bf16")
    small, large = (Target("cpu", "x86_64", features, 2, 1, l1=size << 10) for size in (32, 48))

    def defaults(problem: Attention) -> list[tuple[Any, ...]]:
        found = [values_of(problem, target)[1] for target in (small, large)]
        return [(values.get("streams"), values["block"], values["level"]) for values in found]

    assert defaults(problem) == [(1, 128, 2), (4, 256, 1)]
    assert defaults(dense) == [(None, 64, 2), (None, 16, 1)]


def test_rows_are_asked_for_into_the_cache_that_is_named() -> None:
    first, second, wakes = asked(1, 0), asked(2, 0), asked(2, 32)
    assert first.keys() == {"prefetcht0"}
    assert second == {"prefetcht1": first["prefetcht0"]}
    # Two lines of a row of keys and of one of values, where steps begin such rows.
    assert wakes["prefetcht1"] >= second["prefetcht1"] + 4
