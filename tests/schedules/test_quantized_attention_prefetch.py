"""What quantised attention asks for ahead of time lies within the cache where that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tvm_ffi
from tests.schedules.attention import Compiled, ragged
from tvm.script import tirx as T

from wattune.ops import QuantizedDecodeAttention
from wattune.schedules.cpu import vector
from wattune.schedules.target import Target

AVX2 = Target.parse("cpu:avx2", 1)
pytestmark = pytest.mark.isa("avx2", "f16c", "fma")

BLOCK, TILE = 128, 32


class Asked(NamedTuple):
    """A prefetch: an element of a tensor of codes (uint8) or of params (float16), its size."""

    dtype: str
    at: int
    size: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Have kernels that are compiled from now on note what they would prefetch."""
    found, dtypes = list[Asked](), list[str]()

    def note(buffer: Any, at: Any, level: int = 1) -> None:
        dtypes.append(str(buffer.dtype))
        sizes = (T.cast(value, "int64") for value in (at, buffer.shape[0]))
        T.evaluate(T.call_packed("tests.asked", T.int32(len(dtypes) - 1), *sizes))

    def keep(which: int, at: int, size: int) -> None:
        found.append(Asked(dtypes[which], at, size))

    register: Callable[..., Any] = tvm_ffi.register_global_func
    register("tests.asked", keep, override=True)
    monkeypatch.setattr(vector, "prefetch", note)
    return found


def run(problem: QuantizedDecodeAttention, lengths: tuple[int, int], **knobs: int) -> None:
    """Run on a cache that has no block more than these lengths fill."""
    inputs = ragged(problem, lengths)
    blocks = max(lengths) // BLOCK
    packed = [f"{which}_{what}" for which in "kv" for what in ("codes", "params")]
    inputs.update({name: np.ascontiguousarray(inputs[name][:, :, :blocks]) for name in packed})
    if problem.block_size:
        inputs["block_indices"][...] = np.arange(problem.max_blocks)
    Compiled(problem, AVX2, tile=TILE, **knobs).check(inputs)


def problem(context: int, **fields: Any) -> QuantizedDecodeAttention:
    return QuantizedDecodeAttention(2, context, 4, 1, 64, block_tokens=BLOCK, **fields)


@pytest.mark.parametrize("lists", [{}, {"block_size": 64, "max_blocks": 6}], ids=["dense", "lists"])
@pytest.mark.parametrize(
    "fields", [{"format": "int8", "key_groups": "token"}, {"group_size": 64}], ids=str
)
def test_no_tile_beyond_the_cache_is_asked_for(
    asked: list[Asked], fields: dict[str, Any], lists: dict[str, int]
) -> None:
    # The last request has rows beyond the packed blocks.
    lengths = (2 * BLOCK, 2 * BLOCK + 100)
    found = problem(max(lengths), **fields, **lists)
    run(found, lengths, ahead=4)
    assert {one.dtype for one in asked} == {"uint8", "float16"}
    # The lines of a tile are shared out evenly: the last places of the code ask for a few behind.
    behind = {"uint8": TILE * 64 * found.quantized.bits // 8 // 4, "float16": 0}
    for one in asked:
        assert 0 <= one.at < one.size + behind[one.dtype]


def test_nothing_before_an_empty_cache_is_asked_for(asked: list[Asked]) -> None:
    run(problem(100), (20, 100))
    assert asked and all(one.size == 0 and one.at >= 0 for one in asked)
