"""Every format must give back the weights it was given, in the bits it states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattune.errors import ArgumentError
from wattune.ops.ternary_formats import FORMATS, LookupFormat

STATED_BITS = {"i2": 2.0, "t5": 1.6, "tl1": 2.0, "tl2": 5 / 3, "elut": 2.5}


def levels_of(name: str) -> int:
    return 5 if FORMATS[name].supports(5) else 3


def test_stated_bits() -> None:
    assert {name: fmt.bits for name, fmt in FORMATS.items()} == STATED_BITS


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 131), seed=st.integers(0, 2**32))
def test_round_trip(name: str, rows: int, columns: int, seed: int) -> None:
    high = levels_of(name) // 2
    weights = np.random.default_rng(seed).integers(-high, high + 1, (rows, columns), np.int8)
    planes = FORMATS[name].pack(weights)
    assert all(plane.dtype == np.uint8 for plane in planes.values())
    np.testing.assert_array_equal(FORMATS[name].unpack(planes, columns), weights)


@pytest.mark.parametrize("name", FORMATS)
def test_bits_per_weight_are_what_is_stored(name: str) -> None:
    columns = 240  # whole groups and bytes in every format
    planes = FORMATS[name].pack(np.zeros((4, columns), np.int8))
    stored = sum(plane.size for plane in planes.values()) * 8 / (4 * columns)
    assert stored == pytest.approx(FORMATS[name].bits)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_outside_the_levels_are_refused(name: str) -> None:
    weights = np.zeros((2, 12), np.int8)
    weights[1, 5] = levels_of(name) // 2 + 1
    with pytest.raises(ArgumentError, match=rf"weight value {weights[1, 5]}; allowed"):
        FORMATS[name].pack(weights)


def test_published_codes() -> None:
    """The codes of Bitnet.cpp: TL1 index 3 w0 + w1 + 4; TL2 |9 w0 + 3 w1 + w2| and its sign."""
    tl1 = FORMATS["tl1"].pack(np.array([[1, -1, 0, 1]], np.int8))
    assert tl1["index"].tolist() == [[(3 - 1 + 4) | (0 + 1 + 4) << 4]]
    tl2 = FORMATS["tl2"].pack(np.array([[-1, 1, 0, 0, 1, -1]], np.int8))
    assert tl2["index"].tolist() == [[(9 - 3) | (3 - 1) << 4]]
    assert tl2["sign"].tolist() == [[0b01]]


@pytest.mark.parametrize("name", ["tl1", "tl2", "elut"])
def test_tables_fit_a_byte_shuffle(name: str) -> None:
    fmt = FORMATS[name]
    assert isinstance(fmt, LookupFormat)
    table = fmt.table_values()
    assert len(table) == fmt.entries() <= 16
    assert len({tuple(row) for row in table.tolist()}) == len(table)
