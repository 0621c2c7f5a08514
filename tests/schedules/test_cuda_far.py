"""Caches of more than 2^31 words on the emulator: extents, not memory.

A cache's last request begins beyond 2^31 words of 4 bytes, in which many kernels count; of the
memory around it nothing is ever touched, so that there is none. What a kernel finds there, or
leaves, is what it would in a small cache.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.schedules.cuda import HOPPER, candidate_of, emulated

from wattune.compiler.build import decided_sizes
from wattune.compiler.measure.ffi import Call
from wattune.compiler.measure.verify import difference
from wattune.ops import (
    AttnGate,
    AttnGateCompress,
    BlockMinmax,
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    KVCacheAppend,
    KVCacheQuantize,
    Problem,
    QuantizedDecodeAttention,
    QuantizedKVCacheAppend,
    RectifyAttention,
    TokenSparseDecodeAttention,
    operator,
)
from wattune.ops.dtypes import itemsize, numpy_dtype
from wattune.ops.gate_parts import SLOTS

FAR = 4 << 31
# MAP_NORESERVE of Linux, which Python's mmap names from 3.13 on.
NO_RESERVE = 0x4000
# Sizes of caches that may be larger than what is kept in them.
ROOM = ("capacity", "packed_blocks", SLOTS)

PROBLEMS: tuple[tuple[Problem, dict[str, Any]], ...] = (
    (DecodeAttention(2, 100, 8, 2, 64), {}),
    (DecodeAttention(2, 100, 8, 2, 64, layout="NHD"), {"copies": "bulk", "persistent": True}),
    (BlockSparseDecodeAttention(2, 100, 8, 2, 64, max_blocks=2, block_size=32), {}),
    (TokenSparseDecodeAttention(2, 100, 8, 2, 64, max_tokens=20), {}),
    (RectifyAttention(2, 100, 8, 2, 64, query_tokens=4), {}),
    (KVCacheAppend(2, 100, 2, 64), {}),
    (BlockMinmax(2, 100, 2, 64), {}),
    (QuantizedDecodeAttention(2, 300, 8, 2, 64), {}),
    (QuantizedKVCacheAppend(2, 300, 2, 64), {}),
    (KVCacheQuantize(2, 300, 2, 64), {}),
    (AttnGateCompress(2, 100, 1, 64, block_size=16), {}),
    # Slots without keys are outputs too: rows are wide so that these are few.
    (BlockScore(2, 100, 2, 1, 2048), {"steps": 16}),
    (AttnGate(2, 100, 2, 1, 64, gate_dim=2048, block_size=16), {"steps": 16}),
)


def sparse(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return zeros that take memory where they are touched only."""
    kind = numpy_dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, max(1, count * kind.itemsize), flags=flags)
    return np.frombuffer(memory, kind, count).reshape(shape)


def turned_round(problem: Any) -> dict[str, NDArray[Any]]:
    """Return verification inputs with their requests in the other order.

    Of those the last is empty: there would be nothing to do where words are far.
    """
    op = operator(problem.operator)
    found: dict[str, NDArray[Any]] = dict(op.verification_inputs(problem, np.random.default_rng(0)))
    for argument in op.arguments(problem):
        if argument.name in found and argument.shape[0] == "batch":
            found[argument.name] = found[argument.name][::-1].copy()
    assert found["seq_lens"][-1] > 0
    return found


def room_of(problem: Any, sizes: dict[str, int]) -> dict[str, int]:
    """Return sizes with which all but the last request of the largest cache take `FAR` bytes."""
    known = {**problem.extents, **sizes}
    found: dict[str, int] = {}
    for argument in operator(problem.operator).arguments(problem):
        for name in (name for name in ROOM if name in argument.shape):
            each = int(np.prod(argument.concrete(known), dtype=np.int64)) // known[name]
            before = itemsize(argument.dtype) * each // problem.batch * (problem.batch - 1)
            found[name] = min(found.get(name, FAR), FAR // before + 1)
    assert found
    return {**known, **found}


@pytest.mark.parametrize(("problem", "knobs"), PROBLEMS, ids=str)
def test_words_beyond_2_31(
    problem: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    op = operator(problem.operator)
    candidate = candidate_of(problem, HOPPER, "", knobs)
    known = room_of(problem, decided_sizes(candidate))
    inputs = turned_round(problem)
    expected = op.reference(problem, inputs)
    arguments = op.arguments(problem)
    arrays = {a.name: sparse(a.concrete(known), a.dtype) for a in arguments}
    # What there is of a cache lies at the beginning of each request's room.
    near = {
        name: arrays[name][tuple(slice(n) for n in values.shape)]
        for name, values in {**inputs, **expected}.items()
        if name in arrays
    }
    for name, values in inputs.items():
        near[name][...] = values
    with emulated(candidate, monkeypatch) as library:
        places = [(arrays[a.name].ctypes.data, a.dtype, a.concrete(known)) for a in arguments]
        library.call("kernel", Call(places))
    for name, right in expected.items():
        same = near[name].tobytes() == np.ascontiguousarray(right).tobytes()
        assert same or not difference(near[name], right, op.tolerance(problem, name)), name
