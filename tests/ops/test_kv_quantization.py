"""The quantiser's properties and the order of bits, spelled out."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wattune.ops.kv_quantization import (
    BITS,
    LARGEST,
    pack_keys,
    pack_values,
    quantize,
    unpack_keys,
    unpack_values,
)

FORMATS = sorted(BITS.values())


def codes_of(tokens: int, dim: int, bits: int) -> NDArray[Any]:
    rng = np.random.default_rng(bits)
    return rng.integers(0, 2**bits, (2, 3, tokens, dim), dtype=np.uint8)


@pytest.mark.parametrize("bits", FORMATS)
def test_key_bytes_by_hand(bits: int) -> None:
    tokens, dim, fields = 32, 48, 8 // bits
    codes = codes_of(tokens, dim, bits)
    packed = pack_keys(codes, bits)[1, 2]
    quads = dim // (4 * fields)
    for place, byte in enumerate(packed.tolist()):
        tile, rest = divmod(place, quads * 64)
        j, rest = divmod(rest, 64)
        t, c = divmod(rest, 4)
        expected = 0
        for field in range(fields):
            channel = field * (dim // fields) + 4 * j + c
            expected |= int(codes[1, 2, 16 * tile + t, channel]) << (bits * field)
        assert byte == expected


@pytest.mark.parametrize("bits", FORMATS)
def test_value_bytes_by_hand(bits: int) -> None:
    tokens, dim, fields = 32, 48, 8 // bits
    codes = codes_of(tokens, dim, bits)
    packed = pack_values(codes, bits)[1, 2]
    for place, byte in enumerate(packed.tolist()):
        part, rest = divmod(place, dim * 4)
        n, rest = divmod(rest, 64)
        lane, t = divmod(rest, 4)
        expected = 0
        for field in range(fields):
            token = 4 * (fields * part + field) + t
            expected |= int(codes[1, 2, token, 16 * n + lane]) << (bits * field)
        assert byte == expected


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("dim", [16, 48, 80, 128])
def test_unpacking_undoes_packing(bits: int, dim: int) -> None:
    codes = codes_of(32, dim, bits)
    keys, values = pack_keys(codes, bits), pack_values(codes, bits)
    assert keys.shape == values.shape == (2, 3, 32 * dim * bits // 8)
    np.testing.assert_array_equal(unpack_keys(keys, 32, dim, bits), codes)
    np.testing.assert_array_equal(unpack_values(values, 32, dim, bits), codes)


def restored(x: NDArray[Any], bits: int) -> NDArray[Any]:
    codes, (scale, zero) = quantize(x, -1, bits)
    wide = scale.astype(np.float64)[..., None], zero.astype(np.float64)[..., None]
    return np.asarray(codes * wide[0] + wide[1])


@pytest.mark.parametrize("bits", FORMATS)
def test_a_plain_group(bits: int) -> None:
    # A group of every level: exact, as scale and zero are exact in float16.
    levels = 2**bits - 1
    x = (np.arange(levels + 1) * 0.5 - 1)[None].astype(np.float32)
    codes, params = quantize(x, -1, bits)
    assert codes.tolist() == [list(range(levels + 1))]
    assert params.dtype == np.float16
    assert params.tolist() == [[0.5], [-1.0]]


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1000.3, 1e6, -np.inf])
def test_a_group_without_range(bits: int, value: float) -> None:
    x = np.full((3, 32), value, np.float32)
    codes, (scale, zero) = quantize(x, -1, bits)
    assert not codes.any()
    assert not scale.any()
    expected = np.float16(np.clip(np.float32(value), -LARGEST, LARGEST))
    assert (zero == expected).all()


def test_a_range_below_float16_is_none() -> None:
    x = np.float32(1) + np.arange(32, dtype=np.float32)[None] * 1e-9
    codes, (scale, _) = quantize(x, -1, 8)
    assert not codes.any()
    assert not scale.any()


@pytest.mark.parametrize("bits", FORMATS)
def test_one_outlier_takes_the_range(bits: int) -> None:
    x = np.linspace(-1, 1, 32, dtype=np.float32)[None].copy()
    x[0, 7] = 2000
    codes, (scale, _) = quantize(x, -1, bits)
    levels = 2**bits - 1
    assert codes[0, 7] == levels
    assert np.delete(codes[0], 7).max() == 0
    assert scale[0] == np.float16(np.float32(2001) / np.float32(levels))


def test_scale_and_zero_are_rounded_to_nearest_even() -> None:
    # 1 + 2^-11 and 1 + 3 * 2^-11 lie between two float16 numbers; the range 2 has an exact scale.
    for low, expected in ((1 + 2.0**-11, 1.0), (1 + 3 * 2.0**-11, 1 + 2.0**-9)):
        x = np.array([[low, low + 2]], np.float32)
        _, (scale, zero) = quantize(x, -1, 2)
        assert zero[0] == expected
        assert scale[0] == np.float16(np.float32(2) / np.float32(3))


def test_codes_are_those_of_the_rounded_params() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 64)) * 10 + 100).astype(np.float32)
    for bits in FORMATS:
        codes, (scale, zero) = quantize(x, -1, bits)
        for row in range(0, 50, 7):
            s, z = Fraction(float(scale[row])), Fraction(float(zero[row]))
            steps = [(Fraction(float(v)) - z) / s for v in x[row]]
            most = 2**bits - 1
            for step, code in zip(steps, codes[row].tolist(), strict=True):
                near = min(max(step, Fraction(0)), Fraction(most))
                # The nearest level; 2^-20 for the two roundings before.
                assert abs(near - code) <= Fraction(1, 2) + Fraction(256, 2**20)


def test_values_beyond_float16_are_clipped() -> None:
    x = np.array([[-1e9, -70000, 30000, 70000, np.inf]], np.float32)
    codes, (scale, zero) = quantize(x, -1, 2)
    assert zero[0] == -LARGEST
    assert scale[0] == np.float16(2 * LARGEST / 3)
    assert codes.tolist() == [[0, 0, 2, 3, 3]]
    assert np.isfinite(restored(x, 2)).all()


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(FORMATS),
    rows=st.lists(
        st.lists(st.floats(-6e4, 6e4, width=32), min_size=4, max_size=4), min_size=1, max_size=4
    ),
)
def test_the_error_is_half_a_step(bits: int, rows: list[list[float]]) -> None:
    x = np.array(rows, np.float32)
    _, (scale, zero) = quantize(x, -1, bits)
    error = np.abs(restored(x, bits) - x.astype(np.float64))
    step = scale.astype(np.float64)[:, None]
    # Rounding zero and scale to float16 moves all levels: by half a unit, and by 2^-11 of a step.
    unit = np.spacing(np.abs(zero)).astype(np.float64)[:, None]
    spread = 2.0**bits * (step * 2.0**-11 + 2.0**-25)
    assert (error <= step / 2 + unit + spread + 1e-3 * step).all()


def test_groups_along_any_axis() -> None:
    x = np.random.default_rng(1).standard_normal((4, 32, 6)).astype(np.float32)
    codes, params = quantize(x, 1, 4)
    turned, same = quantize(np.swapaxes(x, 1, 2), -1, 4)
    np.testing.assert_array_equal(codes, np.swapaxes(turned, 1, 2))
    np.testing.assert_array_equal(params, same)
    assert params.shape == (2, 4, 6)
