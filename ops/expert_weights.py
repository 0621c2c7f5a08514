"""Formats of expert weights: how the values of a matrix [..., columns] become elements of a source.

    bf16  bfloat16 [..., columns]
    int8  uint8    [..., columns + 4]               int8 codes, then the row's float32 scale
    int4  uint8    [..., columns / 128 * 68]        a group of 128: scale, zero (float16), 64 bytes

A value is code * scale in int8, (code - zero) * scale in int4, where byte i of a group holds code
2 i in its low half and 2 i + 1 in its high half. The order in a kernel's memory is the layout's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ArgumentError
from wattune.ops.dtypes import numpy_dtype
from wattune.ops.operator import Array
from wattune.ops.quantize import quantize_per_token

Floats = NDArray[np.float64]

GROUP = 128
SCALE_BYTES = 4
GROUP_BYTES = 4 + GROUP // 2
_INT8_MOST = 127
_INT4_MOST = 15


@dataclass(frozen=True)
class WeightFormat(ABC):
    """One way to store weights; rows of ``columns`` values are a multiple of ``group``."""

    name: str
    dtype: str
    group: int

    @abstractmethod
    def width(self, columns: int) -> int:
        """Return the elements of a source row."""

    @abstractmethod
    def encode(self, values: Array) -> Array:
        """Return the source of float values [..., columns], rounded."""

    @abstractmethod
    def decode(self, source: Array) -> Floats:
        """Return the values [..., columns] of a source, exactly."""

    @abstractmethod
    def poison(self, source: Array) -> None:
        """Make the values of a source NaN, in place."""

    def activations(self, rows: Array) -> Floats:
        """Round activations [rows, columns] as kernels do before they multiply.

        To bfloat16, or, beside integer weights, to int8 with one scale a row.
        """
        q, scale = quantize_per_token(rows)
        return q.astype(np.float64) / scale.astype(np.float64)[:, None]

    def bits(self, columns: int) -> float:
        """Return the bits of a value, scales and zeros included."""
        return 8 * self.width(columns) * numpy_dtype(self.dtype).itemsize / columns


class _Bf16(WeightFormat):
    def width(self, columns: int) -> int:
        return columns

    def encode(self, values: Array) -> Array:
        return values.astype(numpy_dtype("bfloat16"))

    def decode(self, source: Array) -> Floats:
        return source.astype(np.float64)

    def poison(self, source: Array) -> None:
        source[...] = np.nan

    def activations(self, rows: Array) -> Floats:
        return rows.astype(np.float32).astype(numpy_dtype("bfloat16")).astype(np.float64)


class _Int8(WeightFormat):
    def width(self, columns: int) -> int:
        return columns + SCALE_BYTES

    def encode(self, values: Array) -> Array:
        wide = values.astype(np.float32)
        scale = np.maximum(np.abs(wide).max(-1, initial=0.0), 1e-30) / np.float32(_INT8_MOST)
        return join_int8(np.rint(wide / scale[..., None]).astype(np.int8), scale)

    def decode(self, source: Array) -> Floats:
        codes = source[..., :-SCALE_BYTES].view(np.int8).astype(np.float64)
        return np.asarray(codes * self._scale(source).astype(np.float64))

    def poison(self, source: Array) -> None:
        self._scale(source)[...] = np.nan

    def _scale(self, source: Array) -> Any:
        # A view, so that `poison` can write to it: rows need not be a multiple of 4 bytes.
        width = source.shape[-1]
        record = np.dtype(
            {
                "names": ["scale"],
                "formats": ["<f4"],
                "offsets": [width - SCALE_BYTES],
                "itemsize": width,
            }
        )
        return source.view(record)["scale"]


class _Int4(WeightFormat):
    def width(self, columns: int) -> int:
        return columns // GROUP * GROUP_BYTES

    def encode(self, values: Array) -> Array:
        wide = values.astype(np.float32).reshape(*values.shape[:-1], -1, GROUP)
        low, high = np.minimum(wide.min(-1), 0.0), np.maximum(wide.max(-1), 0.0)
        # Scales that float16 cannot hold are raised: then all codes are the zero point.
        scale = np.maximum((high - low) / _INT4_MOST, np.float32(2.0**-14)).astype(np.float16)
        step = scale.astype(np.float32)
        zero = np.clip(np.rint(-low / step), 0, _INT4_MOST)
        codes = np.clip(np.rint(wide / step[..., None]) + zero[..., None], 0, _INT4_MOST)
        return join_int4(codes.astype(np.uint8).reshape(values.shape), scale, zero)

    def decode(self, source: Array) -> Floats:
        groups, params = self._parts(source)
        packed = groups[..., 4:]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], GROUP)
        scale, zero = (params[..., i].astype(np.float64)[..., None] for i in range(2))
        found = (codes.astype(np.float64) - zero) * scale
        return np.asarray(found.reshape(*source.shape[:-1], -1))

    def poison(self, source: Array) -> None:
        self._parts(source)[1][...] = np.nan

    def _parts(self, source: Array) -> tuple[Array, Any]:
        groups = source.reshape(*source.shape[:-1], -1, GROUP_BYTES)
        return groups, groups[..., :4].view(np.float16)


def join_int8(codes: Array, scale: Array) -> NDArray[np.uint8]:
    """Return the source of int8 codes [..., columns] and a scale a row [...]."""
    tail = np.ascontiguousarray(scale, "<f4")[..., None].view(np.uint8)
    return np.concatenate([codes.astype(np.int8).view(np.uint8), tail], -1)


def join_int4(codes: Array, scale: Array, zero: Array) -> NDArray[np.uint8]:
    """Return the source of codes 0..15 [..., columns]; scale and zero [..., columns / 128]."""
    if codes.shape[-1] % GROUP:
        raise ArgumentError(f"int4 codes have {codes.shape[-1]} columns; allowed: multiples of 128")
    groups = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, GROUP)
    params = np.stack([scale, zero], -1).astype("<f2").view(np.uint8)
    packed = groups[..., 0::2] | groups[..., 1::2] << 4
    return np.concatenate([params, packed], -1).reshape(*codes.shape[:-1], -1)


FORMATS: dict[str, WeightFormat] = {
    "bf16": _Bf16("bf16", "bfloat16", 1),
    "int8": _Int8("int8", "uint8", 1),
    "int4": _Int4("int4", "uint8", GROUP),
}


def random_words(count: int, seed: int) -> NDArray[np.uint8]:
    """Draw bytes that are weights in any format and layout.

    Every 16 bits are a normal number of bfloat16 and of float16, every 32 of float32: the second
    highest exponent bit is clear, the next one set.
    """
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 16, -(-count // 2), dtype=np.uint16)
    return (words & 0xBFFF | 0x2000).view(np.uint8)[:count]
