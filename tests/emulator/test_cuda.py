"""CUDA programs on the emulated driver: from a template to verified results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.emulator.row_share import ROW_SHARE, RowShare
from tests.schedules.cuda import check_kernel

from wattune import ops
from wattune.schedules import template


@pytest.fixture(autouse=True)
def _row_share(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ops._OPERATORS, ROW_SHARE.name, ROW_SHARE)
    modules = {**template._MODULES, "cuda": ("tests.emulator.row_share",)}
    monkeypatch.setattr(template, "_MODULES", modules)
    template._templates.cache_clear()
    yield
    template._templates.cache_clear()


@pytest.mark.parametrize("rows, columns", [(1, 4), (3, 516), (7, 2048)])
def test_kernel(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernel(RowShare(rows=rows, columns=columns), monkeypatch)
