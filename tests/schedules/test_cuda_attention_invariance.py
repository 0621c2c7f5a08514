"""What results of CUDA attention do not depend on: other requests, used workspaces, padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import (
    HOPPER,
    TINY,
    candidate_of,
    check_other_sizes,
    check_samples,
    emulated,
)

from wattune.compiler.build import decided_sizes
from wattune.compiler.measure.cases import Binder
from wattune.compiler.measure.verify import check
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.dtypes import numpy_dtype
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention
from wattune.schedules.target import Target

BLOCKS = BlockSparseDecodeAttention(2, 300, 8, 2, 64, max_blocks=4, block_size=32)


@pytest.mark.parametrize("combine", ["kernel", "last"])
def test_other_requests_change_no_bit(combine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the grid and who copies.

    The workspace is as the call before left it: counters start from it.
    """
    knobs = {"splits": 4, "combine": combine}
    alone, together, shorter = outputs(HOPPER, knobs, monkeypatch)
    assert alone[1].any() and not alone[0].any()
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_array_equal(together[[0, 2]], shorter[[0, 2]])
    assert (together[1] != shorter[1]).any()
    persistent = outputs(TINY, {**knobs, "persistent": True}, monkeypatch)
    np.testing.assert_array_equal(persistent, (alone, together, shorter))
    apart = outputs(HOPPER, {**knobs, "copies": "bulk", "roles": "producer"}, monkeypatch)
    np.testing.assert_array_equal(apart, (alone, together, shorter))


def outputs(target: Target, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the outputs of three calls with different lengths of three requests."""
    problem = DecodeAttention(3, 1100, 4, 1, 64)
    candidate = candidate_of(problem, target, "", knobs)
    with emulated(candidate, monkeypatch) as library:
        binder = Binder(0, target.kind)
        bound = binder.bind(problem, None, decided_sizes(candidate))
        check(bound, library, binder.place)
        out = bound.tensors["out"]

        def run(*lengths: int) -> Any:
            bound.tensors["seq_lens"].fill(np.array(lengths, np.int32))
            out.fill(np.full(out.memory.size, 0xFF, np.uint8))
            library.call("kernel", bound.call)
            found = out.memory.read().copy()
            assert np.isfinite(found.view(numpy_dtype(problem.dtype)).astype(np.float32)).all()
            return found.reshape(3, -1)

        return run(0, 700, 0), run(1100, 700, 300), run(1100, 100, 300)


def test_other_sizes_than_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer requests and lists are served too, fewer requests as well."""
    check_other_sizes(DecodeAttention(3, 100, 4, 1, 64, page_size=16), monkeypatch, context=700)
    check_other_sizes(BLOCKS, monkeypatch, batch=1, context=500, max_blocks=11)


@pytest.mark.parametrize(
    "problem",
    [
        DecodeAttention(2, 300, 14, 2, 64, query_tokens=2, window=100, return_lse=True),
        BLOCKS,
        TokenSparseDecodeAttention(2, 300, 16, 1, 128, max_tokens=50, sinks=True),
    ],
    ids=str,
)
def test_sampled_schedules(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(problem, monkeypatch, count=3)
