"""Selection of blocks on an emulated GPU, bit by bit against its reference."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.cuda import check_kernel

from wattune.ops import SelectBlocks

BLOCKS: tuple[tuple[SelectBlocks, dict[str, Any]], ...] = (
    (SelectBlocks(5, 3000, 3, block_size=16, token_budget=320), {}),
    (SelectBlocks(5, 3000, 3, 20, block_size=16, token_budget=320, sink_blocks=2), {"kept": 0}),
    (SelectBlocks(5, 3000, 2, block_size=1, method="fraction"), {"kept": 2048}),
    (SelectBlocks(5, 1000, 3, block_size=16, method="fraction", sink_blocks=1), {"digit_bits": 11}),
    (SelectBlocks(5, 1000, 3, block_size=8, method="threshold"), {"histograms": 4}),
    (SelectBlocks(5, 1000, 4, 7, block_size=8, method="threshold", local_blocks=2), {}),
    (SelectBlocks(3, 100, 2, block_size=7, token_budget=21, query_tokens=9), {"histograms": 1}),
    (SelectBlocks(3, 700, 2, block_size=1, token_budget=700, sink_blocks=5, local_blocks=9), {}),
    (SelectBlocks(3, 37, 3, block_size=64, local_blocks=0), {"threads": 512}),
)


@pytest.mark.parametrize(("problem", "knobs"), BLOCKS, ids=str)
def test_select_blocks(
    problem: SelectBlocks, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(problem, monkeypatch, **knobs)
