"""CUDA attention to lists of blocks and of tokens against the references, on the emulator."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.cuda import HOPPER, TINY, check_kernel

from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention

SIZES = (3, 400, 8, 2, 64)

BLOCKS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"max_blocks": 6, "block_size": 32, "return_lse": True}, {"splits": 2}),
    ({"max_blocks": 3, "block_size": 128, "page_size": 128}, {"splits": 4, "combine": "last"}),
    (
        {"max_blocks": 6, "block_size": 16, "window": 90, "page_size": 16, "return_lse": True},
        {"copies": "bulk", "splits": 2},
    ),
    (
        {"max_blocks": 6, "block_size": 32, "query_tokens": 3, "per_token": True, "sinks": True},
        {"splits": 1},
    ),
    # Blocks, pages and tiles that do not divide each other.
    (
        {"max_blocks": 20, "block_size": 7, "page_size": 5, "layout": "NHD", "query_tokens": 2},
        {"splits": 2, "keys": 32},
    ),
    (
        {"max_blocks": 6, "block_size": 32, "query_tokens": 2, "per_token": True},
        {"persistent": True, "copies": "bulk", "splits": 2, "stages": 2},
    ),
    ({"max_blocks": 2, "block_size": 64, "dtype": "float16"}, {"splits": 8, "stages": 2}),
    (
        {"max_blocks": 6, "block_size": 16, "window": 90, "page_size": 16, "return_lse": True},
        {"copies": "bulk", "roles": "producer", "splits": 2, "teams": 2},
    ),
)
TOKENS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"max_tokens": 90, "query_tokens": 2, "return_lse": True}, {"splits": 2}),
    (
        {"max_tokens": 90, "lists": "head", "layout": "NHD", "page_size": 8},
        {"splits": 2, "copies": "bulk"},
    ),
    ({"max_tokens": 5, "window": 100, "sinks": True}, {"splits": 1, "row_warps": 1}),
    ({"max_tokens": 90, "query_tokens": 2}, {"copies": "bulk", "roles": "producer"}),
)


@pytest.mark.parametrize(("fields", "knobs"), BLOCKS)
def test_blocks(
    fields: dict[str, Any], knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TINY if knobs.get("persistent") else HOPPER
    check_kernel(BlockSparseDecodeAttention(*SIZES, **fields), monkeypatch, target, **knobs)


@pytest.mark.parametrize(("fields", "knobs"), TOKENS)
def test_tokens(
    fields: dict[str, Any], knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(TokenSparseDecodeAttention(*SIZES, **fields), monkeypatch, **knobs)
