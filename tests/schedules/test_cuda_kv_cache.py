"""Appending to a cache on an emulated GPU against its reference."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.cuda import AMPERE, check_kernel

from wattune.ops import KVCacheAppend

APPENDS: tuple[tuple[KVCacheAppend, dict[str, Any]], ...] = (
    (KVCacheAppend(3, 50, 8, 128), {}),
    (KVCacheAppend(3, 50, 2, 192, value_dim=128, query_tokens=4, layout="NHD"), {"pieces": 2}),
    (KVCacheAppend(4, 40, 3, 37, value_dim=5, query_tokens=7, dtype="float16"), {"pieces": 8}),
    (KVCacheAppend(3, 50, 3, 33, value_dim=80, dtype="float32", page_size=7), {"threads": 512}),
    (KVCacheAppend(3, 60, 2, 4, value_dim=2, query_tokens=33, layout="NHD", page_size=16), {}),
    # Requests shorter than the new tokens.
    (KVCacheAppend(3, 5, 2, 16, query_tokens=32, dtype="float32"), {"threads": 64, "pieces": 4}),
)


@pytest.mark.parametrize(("problem", "knobs"), APPENDS, ids=str)
def test_append(
    problem: KVCacheAppend, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(problem, monkeypatch, **knobs)


def test_append_on_an_older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernel(KVCacheAppend(2, 20, 2, 72, query_tokens=3), monkeypatch, AMPERE)
