"""Attention to listed blocks of a quantised cache, against the dequantised reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import Compiled, ragged, without_tiles
from tests.schedules.kernels import Array

from wattune.ops import QuantizedDecodeAttention, operator
from wattune.schedules.target import Target

NATIVE = Target.native(threads=1)
# The same one where there are no tiles.
TARGETS = tuple(dict.fromkeys((without_tiles(NATIVE), NATIVE)))
AVX2 = dataclasses.replace(
    NATIVE, features=tuple(f for f in NATIVE.features if f in ("avx2", "bmi2", "f16c", "fma"))
)
LENGTHS = (450, 0, 1, 127, 128, 391)
VNNI = pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")


def problem(block_size: int, max_blocks: int, **fields: Any) -> QuantizedDecodeAttention:
    return QuantizedDecodeAttention(
        *(6, 1, 8, 2, 64), block_size=block_size, max_blocks=max_blocks, return_lse=True, **fields
    )


CASES: list[tuple[QuantizedDecodeAttention, dict[str, Any]]] = [
    (problem(16, 12, query_tokens=2), {}),
    (problem(48, 5, format="int8", key_groups="token"), {"tile": 32, "ahead": 2}),
    (problem(64, 4, format="int2", window=300), {"tile": 64, "ahead": 4}),
    (problem(128, 3, group_size=32), {"splits": 4, "split_tokens": 256, "tile": 64}),
    (problem(256, 2, key_groups="token", query_tokens=3), {"ahead": 0}),
]


@VNNI
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_lists(problem: QuantizedDecodeAttention, knobs: dict[str, Any], target: Target) -> None:
    """Lists of any order and length, -1 anywhere, blocks beyond a request."""
    compiled = Compiled(problem, target, **knobs)
    for seed in (0, 1):
        compiled.check(ragged(problem, LENGTHS, seed))


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_lists_on_avx2(problem: QuantizedDecodeAttention, knobs: dict[str, Any]) -> None:
    compiled = Compiled(problem, AVX2, **knobs)
    assert compiled.template.name == "quantized_attention_avx2"
    compiled.check(ragged(problem, LENGTHS))


def test_portable() -> None:
    found = problem(64, 4, format="int8")
    Compiled(found, Target.parse("cpu:generic", 1)).check(ragged(found, LENGTHS))


def listed(problem: QuantizedDecodeAttention, inputs: dict[str, Array], *rows: list[int]) -> Any:
    """Return the inputs with the same lists for both heads of each request."""
    lists = np.full((len(rows), 2, problem.max_blocks), -1, np.int32)
    for request, row in enumerate(rows):
        lists[request, :, : len(row)] = row
    found = {**inputs, "block_indices": lists}
    op: Any = operator(problem.operator)
    sized = dataclasses.replace(problem, batch=len(rows), context=int(inputs["seq_lens"].max()))
    return {**found, **op.poisoned(sized, found)}


@VNNI
def test_residual_selected_or_not() -> None:
    """The residual alone, with packed blocks, and not at all."""
    found = problem(64, 8)
    compiled = Compiled(found, NATIVE)
    inputs = ragged(dataclasses.replace(found, block_size=0, max_blocks=0), (450, 450, 450, 70))
    compiled.check(listed(found, inputs, [6, 7], [-1, 7, 0], [5, -1, 2], [1]))


@VNNI
def test_lists_of_everything_are_dense_bit_for_bit() -> None:
    dense = QuantizedDecodeAttention(6, 1, 8, 2, 64, query_tokens=3, return_lse=True)
    inputs = ragged(dense, LENGTHS)
    want = Compiled(dense, NATIVE, tile=64).run(inputs)
    found = problem(64, 8, query_tokens=3)
    lists = np.tile(np.arange(8, dtype=np.int32), (6, 2, 1))
    got = Compiled(found, NATIVE, tile=64).run({**inputs, "block_indices": lists})
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)
