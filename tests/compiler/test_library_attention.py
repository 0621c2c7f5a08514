"""Libraries of attention operators: ragged, paged and sparse calls, and every kind of bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.compiler.libraries import ATTENTION, DENSE, MERGE, attend, exported_attention
from tests.schedules.kernels import assert_matches

from wattune.compiler.library.loader import Kernels, load
from wattune.errors import ArgumentError
from wattune.ops import Problem, operator
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.kv_cache_append import KVCacheAppend

Inputs = dict[str, Any]
(PAGED,) = (p for p in ATTENTION if isinstance(p, DecodeAttention) and p.page_size)
(SPARSE,) = (p for p in ATTENTION if p.operator == "block_sparse_decode_attention")
(APPEND, PAGED_APPEND) = (p for p in ATTENTION if isinstance(p, KVCacheAppend))
(RECTIFY,) = (p for p in ATTENTION if p.operator == "rectify_attention")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load(exported_attention())


def draw(problem: Any, batch: int = 3, context: int = 64, **more: int) -> tuple[Any, Inputs]:
    """Return a problem of these run-time sizes, and hard inputs for it."""
    sized = replace(problem, batch=batch, context=context, **more)
    rng = np.random.default_rng(0)
    return sized, operator(problem.operator).verification_inputs(sized, rng)


def check(kernels: Kernels, problem: Any, inputs: Inputs) -> None:
    """Compare outputs and updated states with the reference."""
    op = operator(problem.operator)
    expected = op.reference(problem, inputs)
    states = [a.name for a in op.arguments(problem) if a.updated]
    inputs = {name: array.copy() for name, array in inputs.items()}
    found = attend(kernels, problem, inputs)
    outputs = [] if found is None else list(found) if isinstance(found, tuple) else [found]
    names = [a.name for a in op.arguments(problem) if a.role == "output"]
    got = {**dict(zip(names, outputs, strict=True)), **{name: inputs[name] for name in states}}
    assert got.keys() == expected.keys()
    assert_matches(problem, got, expected)


@pytest.mark.parametrize(("batch", "context"), [(1, 64), (2, 33), (3, 64), (4, 64), (7, 150)])
@pytest.mark.parametrize("problem", ATTENTION[1:], ids=str)
def test_ragged_requests(kernels: Kernels, problem: Problem, batch: int, context: int) -> None:
    """Poison is in every row that must not be read; batches beyond 3 are cut, contexts are not."""
    check(kernels, *draw(problem, batch, context))


def test_more_blocks_than_the_bucket(kernels: Kernels) -> None:
    check(kernels, *draw(SPARSE, 2, 200, max_blocks=9))


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_merged_states(kernels: Kernels, tokens: int) -> None:
    problem = replace(MERGE, tokens=tokens)
    rng = np.random.default_rng(0)
    check(kernels, problem, operator("merge_states").verification_inputs(problem, rng))


@pytest.mark.parametrize("problem", (DENSE, PAGED, SPARSE), ids=str)
def test_nothing_to_attend_to(kernels: Kernels, problem: Any) -> None:
    sized, inputs = draw(problem)
    inputs["seq_lens"][:] = 0
    check(kernels, sized, inputs)
    # Caches without room for any token.
    for name in ("k_cache", "v_cache"):
        inputs[name] = np.delete(inputs[name], slice(None), 0 if problem.page_size else 2)
    if problem.page_size:
        inputs["page_table"] = inputs["page_table"][:, :0]
    if "block_indices" in inputs:
        inputs["block_indices"][:] = -1
    found = attend(kernels, sized, inputs)
    out, lse = found if isinstance(found, tuple) else (found, None)
    assert (out.astype(np.float32) == 0).all()
    assert lse is None or (lse == -np.inf).all()


def test_no_requests(kernels: Kernels) -> None:
    sized, inputs = draw(PAGED)
    for name in ("q", "seq_lens", "page_table"):
        inputs[name] = inputs[name][:0]
    out, lse = attend(kernels, sized, inputs)
    assert out.shape == (0, 4, 8, 64) and lse.shape == (0, 4, 8)


def test_window_or_not_must_be_said(kernels: Kernels) -> None:
    _, inputs = draw(DENSE)
    tensors = [inputs[name] for name in ("q", "k_cache", "v_cache", "seq_lens")]
    with pytest.raises(ArgumentError, match="say which by name: window=0 or window=16"):
        kernels.decode_attention(*tensors)
    full = kernels.decode_attention(*tensors, window=0)
    near = kernels.decode_attention(*tensors, window=16)
    assert not np.array_equal(full, near)
    with pytest.raises(ArgumentError, match="window is 17; expected window=0 or window=16"):
        kernels.decode_attention(*tensors, window=17)


@pytest.mark.parametrize("problem", (RECTIFY, APPEND), ids=str)
def test_caches_are_not_copied(kernels: Kernels, problem: Any) -> None:
    """Of numpy's bfloat16 too: rows are written where the caller has them."""
    sized, inputs = draw(problem)
    cache = inputs["k_cache"]
    before = cache.copy()
    assert cache.dtype.name == "bfloat16"
    attend(kernels, sized, inputs)
    assert inputs["k_cache"] is cache and cache.tobytes() != before.tobytes()
    # A view that cannot be written to as it is.
    inputs["v_cache"] = inputs["v_cache"][..., ::-1]
    with pytest.raises(ArgumentError, match=r"v_cache is not contiguous.*a state is never copied"):
        attend(kernels, sized, inputs)
    inputs["v_cache"] = np.ascontiguousarray(inputs["v_cache"])
    inputs["k_cache"].flags.writeable = False
    with pytest.raises(ArgumentError, match="k_cache cannot be passed to a kernel: it is read"):
        attend(kernels, sized, inputs)


@pytest.mark.parametrize(("append", "problem"), [(APPEND, DENSE), (PAGED_APPEND, PAGED)], ids=str)
def test_append_then_attend(kernels: Kernels, append: Any, problem: Any) -> None:
    """A decode loop from empty caches: what was appended is what is attended to."""
    sized, new = draw(append, 3, 40)
    _, inputs = draw(problem, 3, 40)
    caches = {name: np.zeros_like(inputs[name]) for name in ("k_cache", "v_cache")}
    steps = append.query_tokens
    for length in range(steps, 40, 9 * steps):
        lengths = np.array([length, length, 0], np.int32)
        rng = np.random.default_rng(length)
        for name in ("k", "v"):
            new[name] = rng.standard_normal(new[name].shape).astype(new[name].dtype)
        pages = {k: inputs[k] for k in ("page_table",) if k in inputs}
        shared = {**caches, **pages, "seq_lens": lengths}
        assert attend(kernels, sized, {**new, **shared}) is None
        check(kernels, replace(problem, batch=3, context=40), {**inputs, **shared})
    rows = caches["k_cache"].any(-1).sum()
    assert rows == 2 * 2 * steps * len(range(steps, 40, 9 * steps))


def put(name: str, index: Any, value: int) -> Callable[[Inputs], None]:
    def change(inputs: Inputs) -> None:
        inputs[name][index] = value

    return change


def swap(name: str, make: Callable[[Any], Any]) -> Callable[[Inputs], None]:
    def change(inputs: Inputs) -> None:
        inputs[name] = make(inputs[name])

    return change


def misaligned(array: Any) -> Any:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return memory.view(array.dtype).reshape(array.shape)


BAD: dict[str, tuple[Any, Callable[[Inputs], None], str]] = {
    "length beyond the cache": (
        DENSE,
        put("seq_lens", 1, 65),
        r"seq_lens\[1\] is 65; allowed: 0 to 64 \(capacity is 64\)",
    ),
    "negative length": (DENSE, put("seq_lens", 2, -1), r"seq_lens\[2\] is -1; allowed: 0 to 64"),
    "length beyond the pages": (
        PAGED,
        put("seq_lens", 0, 65),
        r"seq_lens\[0\] is 65; allowed: 0 to 64 \(max_pages is 8\)",
    ),
    "page out of range": (
        PAGED,
        put("page_table", (0, 1), 24),
        r"page_table\[0, 1\] is 24; allowed: -1 to 23 \(num_pages is 24\)",
    ),
    "block out of range": (
        SPARSE,
        put("block_indices", (1, 0, 2), 4),
        r"block_indices\[1, 0, 2\] is 4; allowed: -1 to 3 \(capacity is 64\)",
    ),
    "duplicate block": (
        SPARSE,
        put("block_indices", (2, 1), 3),
        r"block_indices\[2, 1, 1\] is 3, and so is \[2, 1, 0\]; allowed: each value once",
    ),
    "heads of the caches": (
        DENSE,
        swap("v_cache", lambda a: a[:, :1].copy()),
        r"v_cache has shape \[3, 1, 64, 32\]",
    ),
    "query heads": (
        DENSE,
        swap("q", lambda a: a[:, :, :6].copy()),
        r"q has shape \[3, 1, 6, 64\].*expected \[batch, 1, 8, 64\] bfloat16",
    ),
    "requests": (
        DENSE,
        swap("seq_lens", lambda a: a[:2].copy()),
        r"seq_lens has shape \[2\].*expected \[batch\] int32 with batch 3",
    ),
    "capacities": (
        DENSE,
        swap("v_cache", lambda a: a[:, :, :63].copy()),
        r"v_cache has shape .* with batch 3 with capacity 64",
    ),
    "append beyond the pages": (
        PAGED_APPEND,
        put("seq_lens", 2, 66),
        r"kv_cache_append: seq_lens\[2\] is 66; allowed: 0 to 64 \(max_pages is 8\)",
    ),
    "append to a freed page": (
        PAGED_APPEND,
        put("page_table", (2, 0), -1),
        r"page_table\[2, 0\] is -1; allowed: 0 to 23",
    ),
    "append over its own rows": (
        APPEND,
        lambda inputs: inputs.update(k=inputs["k_cache"].reshape(-1)[:768].reshape(3, 2, 2, 64)),
        "k_cache overlaps k; expected memory of its own",
    ),
    "dtype of lengths": (
        DENSE,
        swap("seq_lens", lambda a: a.astype(np.int64)),
        "seq_lens is int64; expected int32",
    ),
    "dtype of a cache": (
        DENSE,
        swap("k_cache", lambda a: a.astype(np.float32)),
        "k_cache is float32; expected bfloat16",
    ),
    "strided cache": (
        DENSE,
        swap("k_cache", lambda a: np.concatenate([a, a], 3)[..., :64]),
        r"k_cache is not contiguous; .*\(a state is never copied\)",
    ),
    "misaligned cache": (
        DENSE,
        swap("k_cache", misaligned),
        r"k_cache is at address .*; expected a multiple of 2 \(a state is never copied\)",
    ),
    "no pages": (PAGED, lambda inputs: inputs.pop("page_table"), "page_table is missing"),
    "no sinks": (PAGED, lambda inputs: inputs.pop("sinks"), "sinks is missing"),
    "sinks of a variant without": (
        DENSE,
        lambda inputs: inputs.update(sinks=np.zeros(8, np.float32)),
        "sinks is given, but these kernels take none",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_call(kernels: Kernels, name: str) -> None:
    problem, change, message = BAD[name]
    sized, inputs = draw(problem)
    # Full requests, so that every value counts.
    inputs["seq_lens"][:] = 64
    change(inputs)
    with pytest.raises(ArgumentError, match=message):
        attend(kernels, sized, inputs)


def test_inputs_are_copied_where_they_must(kernels: Kernels) -> None:
    sized, inputs = draw(PAGED)
    expected = attend(kernels, sized, inputs)
    inputs["page_table"] = np.asfortranarray(inputs["page_table"])
    inputs["q"].flags.writeable = False
    for got, want in zip(attend(kernels, sized, inputs), expected, strict=True):
        assert np.array_equal(got, want)
