"""What must not change a result: the batch, the place of pages, a list that names everything."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import TARGETS, Compiled, ragged
from tests.schedules.kernels import Array

from wattune.ops import operator
from wattune.ops.attention import Attention
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.token_sparse_decode_attention import TokenSparseDecodeAttention
from wattune.schedules.target import Target

LENGTHS = (300, 0, 1, 65, 290, 128)
SIZES = (6, 300, 8, 2, 64)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("operation", [DecodeAttention, BlockSparseDecodeAttention])
def test_the_batch_changes_no_bit(operation: Any, threads: int, target: Any) -> None:
    if threads > Target.native().cores:
        pytest.skip("one core")
    problem = operation(*SIZES, query_tokens=2, return_lse=True)
    compiled = Compiled(problem, target(threads), splits=4, split_tokens=64, block=32)
    inputs = ragged(problem, LENGTHS)
    together = compiled.check(inputs)
    for request in range(len(LENGTHS)):
        alone = compiled.run({name: a[request : request + 1] for name, a in inputs.items()})
        for name, found in alone.items():
            assert found.tobytes() == together[name][request : request + 1].tobytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("page_size", [7, 64])
def test_pages_change_no_bit(page_size: int, target: Any) -> None:
    plain = DecodeAttention(*SIZES, layout="NHD", return_lse=True)
    paged = dataclasses.replace(plain, page_size=page_size)
    inputs = ragged(plain, LENGTHS)
    want = Compiled(plain, target(1)).run(inputs)
    compiled = Compiled(paged, target(1))
    for seed in (0, 1):
        found = compiled.run(in_pages(paged, inputs, seed))
        assert all(found[name].tobytes() == want[name].tobytes() for name in want)


def in_pages(problem: Attention, inputs: dict[str, Array], seed: int) -> dict[str, Array]:
    """Return the inputs of a contiguous NHD cache with its rows in pages of random order."""
    batch, capacity = inputs["k_cache"].shape[:2]
    rng = np.random.default_rng(seed)
    made = problem.cache.make_page_table(batch, capacity, rng)
    table, found = made["page_table"], {**inputs, **made}
    for name in ("k_cache", "v_cache"):
        rows = inputs[name]
        pages = np.full((table.size, problem.page_size, *rows.shape[2:]), np.nan, rows.dtype)
        for request in range(batch):
            for position in range(capacity):
                page = table[request, position // problem.page_size]
                pages[page, position % problem.page_size] = rows[request, position]
        found[name] = pages
    return found


def test_lists_of_everything_are_dense_bit_for_bit() -> None:
    dense = DecodeAttention(*SIZES, query_tokens=3, return_lse=True)
    inputs = ragged(dense, LENGTHS)
    # One order of keys.
    tiles: dict[str, Any] = {"block": 64, "stretch": 16, "streams": 1}
    want = Compiled(dense, **tiles).run(inputs)
    fields = dataclasses.asdict(dense)
    blocks = np.tile(np.arange(10, dtype=np.int32), (6, 2, 1))
    tokens = np.tile(np.arange(300, dtype=np.int32), (6, 1))
    for problem, extra in (
        (BlockSparseDecodeAttention(**fields, max_blocks=10, block_size=32), blocks),
        (TokenSparseDecodeAttention(**fields, max_tokens=300), tokens),
    ):
        name = "block_indices" if extra is blocks else "token_indices"
        found = Compiled(problem, **tiles).run({**inputs, name: extra})
        assert all(found[key].tobytes() == want[key].tobytes() for key in want), name


@pytest.mark.parametrize("target", TARGETS)
def test_a_window_of_everything_is_dense(target: Any) -> None:
    problem = DecodeAttention(*SIZES, query_tokens=2, return_lse=True)
    inputs = ragged(problem, LENGTHS)
    want = Compiled(problem, target(1)).run(inputs)
    found = Compiled(dataclasses.replace(problem, window=299), target(1)).run(inputs)
    # The first query token of the longest request sees 299 keys, the second loses one.
    for name in want:
        assert found[name][1:].tobytes() == want[name][1:].tobytes()
        assert found[name][0, 0].tobytes() == want[name][0, 0].tobytes()
        assert found[name][0, 1].tobytes() != want[name][0, 1].tobytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("prefetch", [0, 16])
def test_nothing_beyond_the_cache_is_read(prefetch: int, target: Any) -> None:
    problem = DecodeAttention(2, 50, 4, 2, 40, value_dim=24, dtype="float16")
    if target is Target.native:
        problem = DecodeAttention(2, 50, 4, 2, 64)
    inputs = ragged(problem, (50, 50))
    for name in ("k_cache", "v_cache"):
        inputs[name] = before_a_hole(inputs[name])
    Compiled(problem, target(1), prefetch=prefetch).check(inputs, in_place=("k_cache", "v_cache"))


def before_a_hole(array: Array) -> Array:
    """Copy an array to the end of a page that nothing can be read behind."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    hole = ctypes.c_void_p(whole.ctypes.data + size)
    assert libc.mprotect(hole, ctypes.c_size_t(page), 0) == 0
    found = whole[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def test_empty_requests() -> None:
    problem = DecodeAttention(3, 40, 4, 2, 32, query_tokens=4, sinks=True, return_lse=True)
    got = Compiled(problem).run(ragged(problem, (0, 2, 0)))
    assert not got["out"][[0, 2]].astype(np.float32).any()
    assert (got["lse"][[0, 2]] == -np.inf).all()
    # Two keys: the last two of four query tokens see one and two of them.
    assert (got["lse"][1, :2] == -np.inf).all() and np.isfinite(got["lse"][1, 2:]).all()
    op = operator(problem.operator)
    assert set(got) == {a.name for a in op.arguments(problem) if a.role == "output"}


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_nan_that_is_seen_shows(name: str) -> None:
    problem = DecodeAttention(2, 40, 4, 2, 32)
    inputs = ragged(problem, (40, 40))
    inputs[name][0, 1, 20, 3] = np.nan
    got = Compiled(problem).run(inputs)["out"].astype(np.float32)
    assert np.isnan(got[0, 0, 2:]).any(-1).all()
    assert np.isfinite(got[0, 0, :2]).all() and np.isfinite(got[1]).all()
