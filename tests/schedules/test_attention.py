"""Decode attention on the CPU against its reference."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.attention import check

from wattune.ops.decode_attention import DecodeAttention
from wattune.schedules.target import Target

PROBLEMS: tuple[tuple[DecodeAttention, dict[str, Any]], ...] = (
    (DecodeAttention(3, 200, 8, 2, 128), {}),
    (
        DecodeAttention(2, 97, 4, 1, 64, dtype="float32"),
        {"block": 64, "rows": 2, "unroll": 2, "stretch": 16},
    ),
    (
        DecodeAttention(3, 200, 8, 2, 128, layout="NHD", page_size=16, return_lse=True, sinks=True),
        {"prefetch": 0},
    ),
    (
        DecodeAttention(
            3,
            200,
            12,
            2,
            192,
            value_dim=128,
            query_tokens=4,
            dtype="float16",
            layout="NHD",
            page_size=7,
            window=50,
            sinks=True,
            return_lse=True,
        ),
        {"block": 64},
    ),
    (
        DecodeAttention(
            2, 1500, 7, 1, 80, value_dim=96, query_tokens=3, soft_cap=5.0, return_lse=True
        ),
        {"splits": 4, "split_tokens": 256},
    ),
    (DecodeAttention(2, 300, 16, 1, 5, value_dim=3, dtype="float32", return_lse=True), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), PROBLEMS, ids=str)
def test_matches_the_reference(problem: DecodeAttention, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


@pytest.mark.parametrize("target", ["cpu:generic", "cpu:avx2"])
def test_other_targets(target: str) -> None:
    check(DecodeAttention(2, 90, 8, 2, 64, return_lse=True), Target.parse(target))
