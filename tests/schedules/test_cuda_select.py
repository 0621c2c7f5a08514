"""Selection of blocks and of tokens on an emulated GPU, bit by bit against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import check_kernel, check_other_sizes, check_samples
from tests.schedules.hard_rows import hard_rows

from wattune.ops import SelectBlocks, SelectUnion, operator

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
UNIONS: tuple[tuple[SelectUnion, dict[str, Any]], ...] = (
    (SelectUnion(4, 300, 5, token_budget=64), {"threads": 128}),
    (SelectUnion(3, 900, 4, 2, token_budget=300), {"digit_bits": 11, "overlap": True}),
    (SelectUnion(3, 200, 3, token_budget=33, middle_ratio=0.9), {"lists": "workspace"}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=0.0), {}),
    (SelectUnion(3, 90, 2, token_budget=40, middle_ratio=1.0), {"threads": 1024}),
    (SelectUnion(2, 50, 4, token_budget=100), {}),
    (SelectUnion(3, 60, 2, 2, token_budget=4, sink_tokens=9), {"threads": 128}),
)


@pytest.mark.parametrize(("problem", "knobs"), (*BLOCKS, *UNIONS), ids=str)
def test_matches_the_reference(
    problem: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(problem, monkeypatch, **knobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"token_budget": 40},
        {"token_budget": 40, "sink_blocks": 3},
        {"token_budget": 333, "local_blocks": 2},
        {"token_budget": 30, "local_blocks": 2, "sink_blocks": 2, "forced": "inside"},
        # Room for fewer than are chosen.
        {"token_budget": 40, "sink_blocks": 3, "max_blocks": 20},
        {"method": "threshold", "threshold": 0.3},
    ],
    ids=str,
)
def test_hard_rows(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hard_rows()
    problem = SelectBlocks(len(rows), 333, 1, **{"block_size": 1, "local_blocks": 0, **fields})
    kind = type(operator(problem.operator))
    lengths = np.where(np.arange(len(rows)) < 6, 333, 171).astype(np.int32)
    lengths[-1] = 0
    inputs = {"scores": rows[:, None], "seq_lens": lengths}
    monkeypatch.setattr(kind, "make_inputs", lambda *_: inputs)
    check_kernel(problem, monkeypatch)


@pytest.mark.parametrize(
    "problem",
    [
        SelectBlocks(3, 300, 2, 20, block_size=4, method="fraction", fraction=0.1),
        SelectBlocks(3, 300, 2, 20, block_size=4, method="threshold"),
        SelectUnion(3, 300, 4, token_budget=64),
    ],
    ids=str,
)
def test_contexts_beyond_the_bucket_and_fewer_requests(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More blocks than are kept in shared memory.
    check_other_sizes(problem, monkeypatch, context=9000, batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [BLOCKS[0][0], BLOCKS[5][0], UNIONS[1][0]], ids=str)
def test_sampled_schedules(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(problem, monkeypatch)
