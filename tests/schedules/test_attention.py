"""Decode attention on the CPU against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import Compiled, check, ragged

from wattune.ops import operator
from wattune.ops.decode_attention import DecodeAttention
from wattune.schedules.cpu.attention.knobs import lanes_of
from wattune.schedules.target import Target

# Lengths around tiles of 16, 32, 64 and 128 keys, whatever the schedule takes.
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 200)

# Each kernel serves all lengths: (fields, knobs).
PROBLEMS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"query_heads": 8, "kv_heads": 2, "head_dim": 128}, {}),
    (
        {"query_heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "float32", "window": 40},
        {"block": 64, "rows": 3, "unroll": 2, "stretch": 16},
    ),
    (
        {
            "query_heads": 12,
            "kv_heads": 2,
            "head_dim": 192,
            "value_dim": 128,
            "query_tokens": 4,
            "layout": "NHD",
            "page_size": 16,
            "window": 50,
            "sinks": True,
            "return_lse": True,
        },
        {"block": 32, "rows": 8, "columns": 2, "prefetch": 32},
    ),
    (
        {
            "query_heads": 7,
            "kv_heads": 1,
            "head_dim": 80,
            "value_dim": 96,
            "query_tokens": 3,
            "soft_cap": 5.0,
            "return_lse": True,
            "page_size": 7,
        },
        {"values": "fma"},
    ),
    (
        {"query_heads": 16, "kv_heads": 1, "head_dim": 256, "dtype": "float16", "page_size": 1},
        {"rows": 16, "columns": 1, "prefetch": 0},
    ),
    (
        {"query_heads": 2, "kv_heads": 2, "head_dim": 16, "query_tokens": 8, "page_size": 64},
        {"rows": 8, "columns": 2, "block": 64},
    ),
    (
        {"query_heads": 3, "kv_heads": 3, "head_dim": 5, "value_dim": 3, "dtype": "float32"},
        {"rows": 1, "block": 16},
    ),
)


@pytest.mark.parametrize(("fields", "knobs"), PROBLEMS, ids=str)
def test_lengths(fields: dict[str, Any], knobs: dict[str, Any]) -> None:
    if "values" in knobs and not Target.native(1).has("avx512_bf16"):
        pytest.skip("one kind of arithmetic only")
    problem = DecodeAttention(len(LENGTHS), 200, **fields)
    # Rows of scores fill the lanes of a vector.
    rows = (
        {"rows": min(knobs["rows"], lanes_of(problem, Target.native(1)))} if "rows" in knobs else {}
    )
    compiled = Compiled(problem, **knobs | rows)
    compiled.check(ragged(problem, LENGTHS))
    # Other run-time sizes, beyond the context and below the batch of the bucket.
    compiled.check(ragged(problem, (333, 0), seed=1))


@pytest.mark.parametrize("target", ["cpu:generic", "cpu:avx2"])
def test_other_targets(target: str) -> None:
    parsed = Target.parse(target)
    if not parsed.runs_here():
        pytest.skip("not on this CPU")
    check(DecodeAttention(3, 90, 12, 2, 80, 64, query_tokens=2, return_lse=True), parsed)
    check(DecodeAttention(2, 90, 4, 2, 64, dtype="float16", soft_cap=3.0), parsed)


@pytest.mark.parametrize("splits", [2, 3, 50])
def test_splits(splits: int) -> None:
    problem = DecodeAttention(5, 700, 8, 2, 64, return_lse=True, sinks=True)
    compiled = Compiled(problem, splits=splits, split_tokens=16, block=16)
    compiled.check(ragged(problem, (700, 17, 0, 1, 300)))


def test_two_threads() -> None:
    problem = DecodeAttention(6, 300, 8, 2, 64, return_lse=True)
    compiled = Compiled(problem, Target.parse("native", 2), splits=4, split_tokens=16)
    compiled.check(ragged(problem, (300, 0, 1, 290, 16, 5)))
    compiled.check(ragged(problem, (0, 0)))


@pytest.mark.parametrize("sink", [-np.inf, 0.0, 15.0, 1e4, np.inf])
def test_sinks(sink: float, sinks_kernel: Compiled) -> None:
    inputs = ragged(sinks_kernel.problem, (90, 1, 0, 40))
    inputs["sinks"] = np.full(4, sink, np.float32)
    with np.errstate(invalid="ignore"):
        sinks_kernel.check(inputs)


@pytest.fixture(scope="module")
def sinks_kernel() -> Compiled:
    return Compiled(DecodeAttention(4, 90, 4, 2, 64, sinks=True, return_lse=True))


def test_large_scores() -> None:
    problem = DecodeAttention(2, 90, 4, 2, 64, dtype="float32", return_lse=True, scale=1.0)
    inputs = ragged(problem, (90, 33))
    inputs["q"] *= 100
    got = Compiled(problem).run(inputs)
    want = operator(problem.operator).reference(problem, inputs)
    # One key outweighs the others: what is left are roundings of scores of thousands.
    np.testing.assert_allclose(got["out"], want["out"], atol=2e-2)
    np.testing.assert_allclose(got["lse"], want["lse"], rtol=2e-6)
