"""Attention to listed blocks and tokens, and rectification, against their references."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.attention import Compiled, check, ragged

from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.rectify_attention import RectifyAttention
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention

BLOCKS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"max_blocks": 9, "block_size": 64}, {"block": 64}),
    ({"max_blocks": 9, "block_size": 48, "page_size": 24}, {"block": 64}),
    # Side by side: four blocks, parts of two, parts of runs that are no multiple of a part.
    ({"max_blocks": 9, "block_size": 64}, {"block": 256, "streams": 4}),
    (
        {"max_blocks": 9, "block_size": 64, "page_size": 32, "query_tokens": 2, "window": 700},
        {"block": 128, "streams": 4, "prefetch": 32, "wake": 32, "splits": 2},
    ),
    ({"max_blocks": 9, "block_size": 20}, {"block": 128, "streams": 2, "prefetch": 16, "wake": 0}),
    (
        {"max_blocks": 24, "block_size": 20, "query_tokens": 3, "window": 300},
        {"splits": 2, "split_tokens": 256},
    ),
    (
        {
            "max_blocks": 16,
            "block_size": 128,
            "query_tokens": 3,
            "per_token": True,
            "layout": "NHD",
            "page_size": 64,
        },
        {"splits": 4, "split_tokens": 256},
    ),
)


@pytest.mark.parametrize(("fields", "knobs"), BLOCKS, ids=str)
def test_blocks(fields: dict[str, Any], knobs: dict[str, Any]) -> None:
    check(BlockSparseDecodeAttention(4, 1000, 8, 2, 64, return_lse=True, **fields), **knobs)


@pytest.mark.parametrize("lists", ["request", "head"])
def test_tokens(lists: str) -> None:
    fields: dict[str, Any] = {"window": 700}
    if lists == "head":
        fields = {"page_size": 7, "query_tokens": 3}
    problem = TokenSparseDecodeAttention(4, 1000, 8, 2, 64, max_tokens=600, lists=lists, **fields)
    check(problem, splits=2, split_tokens=256)


@pytest.mark.parametrize("fields", [{}, {"page_size": 16, "layout": "NHD", "window": 20}], ids=str)
def test_rectify(fields: dict[str, Any]) -> None:
    problem = RectifyAttention(3, 100, 8, 2, 64, query_tokens=40, dtype="float16", **fields)
    # Requests of fewer tokens than there are new rows keep the last of them.
    Compiled(problem).check(ragged(problem, (100, 40, 41, 39, 1, 0)))
