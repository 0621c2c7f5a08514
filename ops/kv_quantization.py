"""Low-bit KV numerics: the asymmetric min-max quantiser of BitDecoding and the order of its bits.

    zero = min, scale = (max - min) / (2^bits - 1), both rounded to float16
    code = clamp(round((x - zero) * (1 / scale)), 0, 2^bits - 1),   x' = code * scale + zero

in float32, each operation rounded once, ties to even; where the scale is 0 all codes are 0. Minimum
and maximum are clipped to float16's range. (BitDecoding, arXiv 2503.18773; KIVI 2402.02750.)
A product with the reciprocal is cheaper than a division a value.

Codes of a block of tokens lie in *quads*: four values that are summed over lie side by side, as
integer dot products take them. A byte holds 8 / bits fields, the lowest bits first:

    keys    byte [tile, j, t, c] of [tokens / 16, dim / (4 fields), 16, 4]:
            field i is token 16 tile + t, channel i dim / fields + 4 j + c
    values  byte [T, n, l, t] of [tokens / (4 fields), dim / 16, 16, 4]:
            field i is token 4 (fields T + i) + t, channel 16 n + l
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = {"int8": 8, "int4": 4, "int2": 2}
LANES = 16
QUAD = 4
# The largest number of float16.
LARGEST = 65504.0

Codes = NDArray[np.uint8]
Half = NDArray[np.float16]


def quantize(x: NDArray[np.float32], axis: int, bits: int) -> tuple[Codes, Half]:
    """Return codes and params [2, ...]: scale and zero of each group along ``axis``.

    The params have x's shape without ``axis``.
    """
    x = x.astype(np.float32)
    levels = np.float32(2**bits - 1)
    low, high = (
        np.clip(found, -LARGEST, LARGEST)
        for found in (x.min(axis, keepdims=True), x.max(axis, keepdims=True))
    )
    scale = ((high - low) / levels).astype(np.float16)
    zero = low.astype(np.float16)
    inverse = np.float32(1) / np.where(scale > 0, scale, 1).astype(np.float32)
    steps = np.where(scale > 0, (x - zero.astype(np.float32)) * inverse, np.float32(0))
    codes = np.clip(np.rint(steps), 0, levels).astype(np.uint8)
    return codes, np.stack([scale.squeeze(axis), zero.squeeze(axis)])


def pack_keys(codes: Codes, bits: int) -> Codes:
    """Bring key codes [..., tokens, dim] into bytes [..., tokens * dim * bits / 8]."""
    *lead, tokens, dim = codes.shape
    fields = 8 // bits
    split = codes.reshape(*lead, tokens // LANES, LANES, fields, dim // (QUAD * fields), QUAD)
    # [tile, t, i, j, c] -> [tile, j, t, c, i]
    return _joined(np.moveaxis(split, (-2, -3), (-4, -1)), bits, lead)


def unpack_keys(packed: Codes, tokens: int, dim: int, bits: int) -> Codes:
    """Undo `pack_keys`."""
    lead, fields = packed.shape[:-1], 8 // bits
    shape = (tokens // LANES, dim // (QUAD * fields), LANES, QUAD)
    split = _fields(packed.reshape(*lead, *shape), bits)
    return np.moveaxis(split, (-4, -1), (-2, -3)).reshape(*lead, tokens, dim)


def pack_values(codes: Codes, bits: int) -> Codes:
    """Bring value codes [..., tokens, dim] into bytes [..., tokens * dim * bits / 8]."""
    *lead, tokens, dim = codes.shape
    fields = 8 // bits
    split = codes.reshape(*lead, tokens // (QUAD * fields), fields, QUAD, dim // LANES, LANES)
    # [T, i, t, n, l] -> [T, n, l, t, i]
    return _joined(np.moveaxis(split, (-2, -1, -3, -4), (-4, -3, -2, -1)), bits, lead)


def unpack_values(packed: Codes, tokens: int, dim: int, bits: int) -> Codes:
    """Undo `pack_values`."""
    lead, fields = packed.shape[:-1], 8 // bits
    shape = (tokens // (QUAD * fields), dim // LANES, LANES, QUAD)
    split = _fields(packed.reshape(*lead, *shape), bits)
    moved = np.moveaxis(split, (-4, -3, -2, -1), (-2, -1, -3, -4))
    return moved.reshape(*lead, tokens, dim)


def _joined(fields: Codes, bits: int, lead: list[int]) -> Codes:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = np.bitwise_or.reduce(fields << shifts, axis=-1)
    return np.ascontiguousarray(packed).reshape(*lead, -1)


def _fields(packed: Codes, bits: int) -> Codes:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
