"""Selection on the CPU, bit by bit against its references."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.attention import check

from wattune.ops import SelectBlocks, SelectUnion

PROBLEMS: tuple[tuple[SelectBlocks, dict[str, Any]], ...] = (
    (SelectBlocks(5, 3000, 3, block_size=16, token_budget=320), {}),
    (SelectBlocks(5, 3000, 3, 20, block_size=16, token_budget=320, sink_blocks=2), {"groups": 0}),
    (SelectBlocks(5, 9000, 2, block_size=1, method="fraction", fraction=0.01), {"chunk": 1024}),
    (
        SelectBlocks(5, 3000, 3, block_size=16, method="fraction", sink_blocks=1),
        {"lanes": 4, "groups": 8},
    ),
    (SelectBlocks(5, 3000, 3, block_size=16, method="threshold"), {}),
    (SelectBlocks(5, 3000, 4, 7, block_size=16, method="threshold", local_blocks=2), {}),
    (SelectBlocks(3, 100, 2, block_size=7, token_budget=21, query_tokens=9), {}),
    (SelectBlocks(3, 700, 2, block_size=1, token_budget=700, sink_blocks=5, local_blocks=9), {}),
    (SelectBlocks(3, 37, 3, block_size=64, local_blocks=0), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), PROBLEMS, ids=str)
def test_select_blocks(problem: SelectBlocks, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


UNIONS: tuple[tuple[SelectUnion, dict[str, Any]], ...] = (
    (SelectUnion(4, 300, 5, token_budget=64), {}),
    (SelectUnion(3, 5000, 6, 2, token_budget=700), {"chunk": 1024}),
    (SelectUnion(3, 200, 3, token_budget=33, middle_ratio=0.9), {"lanes": 4}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=0.0), {}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=1.0), {}),
    (SelectUnion(2, 50, 4, token_budget=100), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), UNIONS, ids=str)
def test_select_union(problem: SelectUnion, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)
