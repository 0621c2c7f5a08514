"""Instructions of single threads on the emulated GPU, against numpy on random words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.emulator.lanes import Values, lanes, words

from wattune.ops.dtypes import numpy_dtype

BLOCKS = 8
COUNT = 32 * BLOCKS


def _run(text: str, result: str, *operands: Values) -> Values:
    return lanes(text, (result,), *operands, blocks=BLOCKS)[0]


@pytest.mark.parametrize("table", [0x80, 0xEA, 0x6A, 0x96, 0xE8])
def test_lop3_computes_the_table(table: int) -> None:
    a, b, c = (words(seed, COUNT) for seed in range(3))
    got = _run(f"lop3.b32 %0, %1, %2, %3, {table:#x};", "uint32", a, b, c)
    expected = np.zeros(COUNT, dtype=np.uint32)
    for bit in range(32):
        row = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
        expected |= (np.uint32(table) >> row & 1).astype(np.uint32) << np.uint32(bit)
    np.testing.assert_array_equal(got, expected)


def test_prmt_picks_bytes_and_signs() -> None:
    a, b, selector = (words(seed, COUNT) for seed in range(3))
    got = _run("prmt.b32 %0, %1, %2, %3;", "uint32", a, b, selector)
    data = np.stack([a, b], axis=1).view(np.uint8)
    expected = np.zeros((COUNT, 4), dtype=np.uint8)
    for i in range(4):
        pick = selector >> np.uint32(4 * i) & 15
        byte = data[np.arange(COUNT), pick & 7]
        expected[:, i] = np.where(pick & 8, np.where(byte & 0x80, 255, 0), byte)
    np.testing.assert_array_equal(got, expected.view(np.uint32)[:, 0])


@pytest.mark.parametrize("kind, dtype", [("f16x2", "float16"), ("bf16x2", "bfloat16")])
@pytest.mark.parametrize(
    "operation, function",
    [
        ("add.rn", lambda a, b, c: a + b),
        ("sub.rn", lambda a, b, c: a - b),
        ("mul.rn", lambda a, b, c: a * b),
        ("fma.rn", lambda a, b, c: a * b + c),
        ("max", lambda a, b, c: np.maximum(a, b)),
        ("min", lambda a, b, c: np.minimum(a, b)),
    ],
)
def test_pairs_round_once(
    kind: str, dtype: str, operation: str, function: Callable[..., Values]
) -> None:
    a, b, c = (_pairs(seed, dtype) for seed in range(3))
    count = 3 if operation == "fma.rn" else 2
    names = ", ".join(f"%{i + 1}" for i in range(count))
    operands = [x.view(np.uint32) for x in (a, b, c)[:count]]
    got = _run(f"{operation}.{kind} %0, {names};", "uint32", *operands).view(a.dtype)
    with np.errstate(over="ignore"):
        expected = function(*(x.astype(np.float64) for x in (a, b, c))).astype(a.dtype)
    np.testing.assert_array_equal(got, expected)


def _pairs(seed: int, dtype: str) -> Values:
    values = np.random.default_rng(seed).standard_normal(2 * COUNT) * 100
    return values.astype(numpy_dtype(dtype))


@pytest.mark.parametrize("kind, dtype", [("f16x2", "float16"), ("bf16x2", "bfloat16")])
def test_conversion_of_pairs_puts_the_first_high(kind: str, dtype: str) -> None:
    high, low = _floats(0), _floats(1)
    got = _run(f"cvt.rn.{kind}.f32 %0, %1, %2;", "uint32", high, low)
    with np.errstate(over="ignore"):
        pairs = np.stack([low, high], axis=1).astype(numpy_dtype(dtype))
    np.testing.assert_array_equal(got, pairs.view(np.uint32)[:, 0])


def _floats(seed: int) -> Values:
    """Draw floats of all magnitudes that halves round, overflow and underflow."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(COUNT) * 2.0 ** rng.integers(-30, 20, COUNT)
    values[:4] = [np.inf, -np.inf, 0.0, -0.0]
    return values.astype(np.float32)


def test_every_half_and_bfloat_converts_exactly() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32)
    got = lanes(
        "{.reg .b16 h, z; mov.b32 {h, z}, %2; cvt.f32.f16 %0, h; cvt.f32.bf16 %1, h;}",
        ("float32", "float32"),
        codes,
        blocks=(1 << 16) // 32,
    )
    for found, dtype in zip(got, (np.float16, ml_dtypes.bfloat16), strict=True):
        expected = codes.astype(np.uint16).view(dtype).astype(np.float32)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "kind, dtype, largest",
    [("e4m3", ml_dtypes.float8_e4m3fn, 448.0), ("e5m2", ml_dtypes.float8_e5m2, 57344.0)],
)
def test_bytes_round_and_saturate(kind: str, dtype: Any, largest: float) -> None:
    rng = np.random.default_rng(0)
    high, low = ((rng.standard_normal(COUNT) * 2.0 ** rng.integers(-12, 20, COUNT)) for _ in "12")
    text = (
        f"{{.reg .b16 h, z; mov.b16 z, 0; cvt.rn.satfinite.{kind}x2.f32 h, %2, %3;"
        f" mov.b32 %0, {{h, z}}; cvt.rn.f16x2.{kind}x2 %1, h;}}"
    )
    operands = [values.astype(np.float32) for values in (high, low)]
    codes, halves = lanes(text, ("uint32", "uint32"), *operands, blocks=BLOCKS)
    pairs = np.stack(operands[::-1], axis=1).clip(-largest, largest).astype(dtype)
    np.testing.assert_array_equal(codes, pairs.view(np.uint16)[:, 0])
    np.testing.assert_array_equal(halves.view(np.float16), pairs.astype(np.float16).reshape(-1))


def test_saturating_conversion() -> None:
    values = np.linspace(-300, 300, COUNT, dtype=np.float32)
    got = _run("cvt.rni.sat.s8.f32 %0, %1;", "int32", values)
    np.testing.assert_array_equal(got, np.clip(np.rint(values), -128, 127).astype(np.int32))


@pytest.mark.parametrize("shift", ["l", "r"])
def test_funnel_shifts(shift: str) -> None:
    a, b, n = (words(seed, COUNT) for seed in range(3))
    got = _run(f"shf.{shift}.wrap.b32 %0, %1, %2, %3;", "uint32", a, b, n)
    both = b.astype(np.uint64) << np.uint64(32) | a
    by = (n & 31).astype(np.uint64)
    expected = (both << by) >> np.uint64(32) if shift == "l" else both >> by
    np.testing.assert_array_equal(got, expected.astype(np.uint32))


def test_predicates_labels_and_scopes() -> None:
    # Counts the trailing zeros of a word that is not 0.
    value = words(0, COUNT) | np.uint32(1 << 31)
    text = (
        "{ .reg .pred p; .reg .b32 w, one; mov.b32 w, %1; mov.u32 %0, 0; LOOP: and.b32 one, w, 1;"
        " setp.ne.b32 p, one, 0; @p bra DONE; shr.b32 w, w, 1; add.u32 %0, %0, 1; bra LOOP; DONE: }"
    )
    got = _run(text, "uint32", value)
    low = value & -value.astype(np.int64)
    np.testing.assert_array_equal(got, np.log2(low.astype(np.float64)).astype(np.uint32))
