"""Formats of few-level weights: how values become bits. The order in memory is the layout's.

Sources: Bitnet.cpp (arXiv 2502.11880) for TL1, TL2 and ELUT; I2_S without its block order.
Each format works on the last axis; rows are padded there with zeros to a whole number of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ArgumentError

Weights = NDArray[np.int8]
Planes = dict[str, NDArray[np.uint8]]


class Format(Protocol):
    """A lossless coding of weight rows.

    ``bits`` per weight, ``group`` weights that share one code, and the planes: name -> bits that
    one group takes in it.
    """

    @property
    def bits(self) -> float:
        """Bits per weight."""

    @property
    def group(self) -> int:
        """Weights per code."""

    def supports(self, levels: int) -> bool:
        """Say whether weights of this many levels can be coded."""

    def pack(self, weights: Weights, levels: int = 3) -> Planes:
        """Code int8 [rows, columns] into planes of uint8 [rows, bytes]."""

    def unpack(self, planes: Planes, columns: int, levels: int = 3) -> Weights:
        """Decode planes into int8 [rows, columns]."""


def check_levels(weights: Weights, levels: int) -> None:
    """Refuse weights outside -(levels // 2) .. levels // 2."""
    high = levels // 2
    if weights.size and (weights.min() < -high or weights.max() > high):
        bad = weights[(weights < -high) | (weights > high)].flat[0]
        raise ArgumentError(f"weight value {bad}; allowed: integers from {-high} to {high}")


def _groups(weights: Weights, group: int) -> NDArray[np.int64]:
    """[rows, columns] -> [rows, groups, group], padded with zeros."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // group) * group), np.int64)
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, group)


def _ungroup(values: NDArray[np.int64], columns: int) -> Weights:
    return values.reshape(len(values), -1)[:, :columns].astype(np.int8)


@dataclass(frozen=True)
class RadixFormat:
    """``group`` digits of weight + 1 in one byte: radix 4 is ``i2``, radix 3 is ``t5``."""

    radix: int
    group: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 / self.group

    def supports(self, levels: int) -> bool:
        """Three levels only."""
        return levels == 3

    def pack(self, weights: Weights, levels: int = 3) -> Planes:
        """Byte = sum of (weight_i + 1) * radix^i."""
        check_levels(weights, 3)
        digits = _groups(weights, self.group) + 1
        return {"code": (digits @ self._powers()).astype(np.uint8)}

    def unpack(self, planes: Planes, columns: int, levels: int = 3) -> Weights:
        """Read the digits of each byte."""
        code = planes["code"].astype(np.int64)[..., None]
        return _ungroup(code // self._powers() % self.radix - 1, columns)

    def _powers(self) -> NDArray[np.int64]:
        return np.array([self.radix**i for i in range(self.group)], np.int64)


@dataclass(frozen=True)
class LookupFormat:
    """ELUT: ``group`` weights are one value v in base ``levels``, an index into a table.

    Without ``mirror`` the index is v + (levels^group - 1) / 2. With ``mirror`` the index is |v| and
    the sign has its own plane, one bit per group. Indices take 4 bits (two groups per byte, the
    even one in the low half): at most 16 table entries. ``levels`` 0 takes the problem's.
    """

    group: int
    mirror: bool
    levels: int = 3

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return (5 if self.mirror else 4) / self.group

    def supports(self, levels: int) -> bool:
        """Say whether the table of these levels has at most 16 entries."""
        return levels == self.levels

    def entries(self) -> int:
        """Count the table's entries."""
        count: int = self.levels**self.group
        return (count + 1) // 2 if self.mirror else count

    def table_values(self) -> NDArray[np.int64]:
        """Return the weights of each index: [entries, group], for building tables."""
        first = 0 if self.mirror else -(self.levels**self.group // 2)
        v = np.arange(self.entries()) + first
        return self._digits(v)

    def pack(self, weights: Weights, levels: int = 3) -> Planes:
        """Return the ``index`` plane and, with mirror, the ``sign`` plane (bit 1 = negative)."""
        check_levels(weights, self.levels)
        v = _groups(weights, self.group) @ self._powers()
        index = np.abs(v) if self.mirror else v + self.levels**self.group // 2
        if index.shape[1] % 2:
            zero = 0 if self.mirror else self.levels**self.group // 2
            index = np.pad(index, ((0, 0), (0, 1)), constant_values=zero)
        planes = {"index": (index[:, 0::2] | index[:, 1::2] << 4).astype(np.uint8)}
        if self.mirror:
            planes["sign"] = np.packbits(v < 0, axis=1, bitorder="little")
        return planes

    def unpack(self, planes: Planes, columns: int, levels: int = 3) -> Weights:
        """Look the weights of each index up and apply the sign."""
        packed = planes["index"].astype(np.int64)
        index = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        groups = -(-columns // self.group)
        index = index[:, :groups]
        if self.mirror:
            sign = np.unpackbits(planes["sign"], axis=1, bitorder="little")[:, :groups]
            v = np.where(sign == 1, -index, index)
        else:
            v = index - self.levels**self.group // 2
        return _ungroup(self._digits(v), columns)

    def _powers(self) -> NDArray[np.int64]:
        """First weight of a group is the most significant digit: v = 9 w0 + 3 w1 + w2."""
        return np.array([self.levels**i for i in reversed(range(self.group))], np.int64)

    def _digits(self, v: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write v in balanced base ``levels``: digits from -(levels // 2)."""
        shifted = v + self.levels**self.group // 2
        digits: NDArray[np.int64] = shifted[..., None] // self._powers() % self.levels
        return digits - self.levels // 2


FORMATS: dict[str, Format] = {
    "i2": RadixFormat(radix=4, group=4),
    "t5": RadixFormat(radix=3, group=5),
    "tl1": LookupFormat(group=2, mirror=False),
    "tl2": LookupFormat(group=3, mirror=True),
    "elut": LookupFormat(group=2, mirror=True, levels=5),
}
