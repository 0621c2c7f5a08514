"""Quantised KV caches: shapes, and numpy access for references.

A request's tokens lie in packed blocks of ``block_tokens``; the rest, fewer than a block, lie in
full precision in a residual buffer, row t for token block_tokens * blocks + t. Heads come before
tokens. Arrays of keys (of values: per token always, with ``value_dim``):

    k_codes     uint8   [batch, kv_heads, packed_blocks, block_tokens * head_dim * bits / 8]
    k_params    float16 [batch, kv_heads, packed_blocks, groups, 2, n]    scales, then zeros
                per channel: groups = block_tokens / group_size of tokens,  n = head_dim
                per token:   groups = head_dim / group_size of channels,    n = block_tokens
    k_residual  dtype   [batch, kv_heads, block_tokens, head_dim]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.ops.dtypes import itemsize, numpy_dtype, round_to
from wattune.ops.kv_cache import Positions
from wattune.ops.kv_quantization import (
    BITS,
    pack_keys,
    pack_values,
    quantize,
    unpack_keys,
    unpack_values,
)
from wattune.ops.operator import Argument, Array, Limit, Values

KEY_GROUPS = ("channel", "token")
GROUP_SIZES = (32, 64, 128)
FREE_SIZES = ("packed_blocks",)
ARRAYS = ("k_codes", "k_params", "k_residual", "v_codes", "v_params", "v_residual")


@dataclass(frozen=True)
class QuantizedKVCache:
    """The geometry of a quantised cache."""

    kv_heads: int
    head_dim: int
    value_dim: int
    format: str
    key_groups: str
    group_size: int
    block_tokens: int
    dtype: str

    @property
    def bits(self) -> int:
        """Return the bits of a code."""
        return BITS[self.format]

    @property
    def fields(self) -> int:
        """Return the codes of a byte."""
        return 8 // self.bits

    def width(self, which: str) -> int:
        """Return the elements of a key ("k") or value ("v") row."""
        return self.head_dim if which == "k" else self.value_dim

    def per_channel(self, which: str) -> bool:
        """Say whether a group is tokens of one channel."""
        return which == "k" and self.key_groups == "channel"

    def groups(self, which: str) -> int:
        """Return the groups of channels of a row, each with a scale of its own."""
        return 1 if self.per_channel(which) else self.width(which) // self.group_size

    def params_shape(self, which: str) -> tuple[int, int, int]:
        """Return the shape of a block's params."""
        if self.per_channel(which):
            return (self.block_tokens // self.group_size, 2, self.width(which))
        return (self.width(which) // self.group_size, 2, self.block_tokens)

    def block_bytes(self, which: str) -> int:
        """Return the bytes of a block's codes."""
        return self.block_tokens * self.width(which) * self.bits // 8

    def arguments(self, updated: bool = False) -> tuple[Argument, ...]:
        """Return the arrays as states, in the order of `ARRAYS`."""
        lead: tuple[int | str, ...] = ("batch", self.kv_heads)
        found = []
        for which in ("k", "v"):
            shapes: dict[str, tuple[tuple[int | str, ...], str]] = {
                "codes": (("packed_blocks", self.block_bytes(which)), "uint8"),
                "params": (("packed_blocks", *self.params_shape(which)), "float16"),
                "residual": ((self.block_tokens, self.width(which)), self.dtype),
            }
            found += [
                Argument(f"{which}_{name}", (*lead, *shape), dtype, "state", updated=updated)
                for name, (shape, dtype) in shapes.items()
            ]
        return tuple(found)

    def lengths(self) -> Argument:
        """Return ``seq_lens``: tokens of each request, packed and residual."""
        values = Values(0, self.most_tokens, maximum="context")
        return Argument("seq_lens", ("batch",), "int32", "input", values=values)

    @property
    def most_tokens(self) -> Limit:
        """Return the most tokens of a request: whole blocks, and a residual."""
        return Limit("packed_blocks", times=self.block_tokens, offset=self.block_tokens - 1)

    def extents(self, context: int) -> dict[str, int]:
        """Return the free sizes of a cache with room for ``context`` tokens a request."""
        return {"packed_blocks": max(1, context // self.block_tokens)}

    def token_bytes(self) -> float:
        """Return the bytes of codes and params of a packed token of one head."""
        size = 0
        for which in ("k", "v"):
            size += self.block_bytes(which) + 2 * int(np.prod(self.params_shape(which)))
        return size / self.block_tokens

    def residual_bytes(self) -> int:
        """Return the bytes of a residual token of one head."""
        return (self.head_dim + self.value_dim) * itemsize(self.dtype)

    def make(self, batch: int, context: int, rng: np.random.Generator) -> dict[str, Array]:
        """Draw all arrays: random codes, scales and zeros that make values in about -2..2."""
        sizes = {"batch": batch, **self.extents(context)}
        found: dict[str, Array] = {}
        for argument in self.arguments():
            shape = argument.concrete(sizes)
            if argument.dtype == "uint8":
                found[argument.name] = rng.integers(0, 256, shape, dtype=np.uint8)
            elif argument.name.endswith("params"):
                params = rng.uniform(0.8, 1.2, shape).astype(np.float32)
                params[..., 0, :] *= 4 / (2**self.bits - 1)
                params[..., 1, :] *= -2
                found[argument.name] = params.astype(np.float16)
            else:
                rows = rng.standard_normal(shape, dtype=np.float32)
                found[argument.name] = round_to(rows, argument.dtype)
        return found

    def quantize(self, which: str, rows: Array) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Return packed codes [..., bytes] and params of blocks [..., block_tokens, width]."""
        *lead, tokens, width = rows.shape
        x = rows.astype(np.float32)
        if self.per_channel(which):
            grouped = x.reshape(*lead, tokens // self.group_size, self.group_size, width)
            codes, params = quantize(grouped, -2, self.bits)
        else:
            grouped = x.reshape(*lead, tokens, width // self.group_size, self.group_size)
            codes, params = quantize(grouped, -1, self.bits)
            params = np.swapaxes(params, -1, -2)
        pack = pack_keys if which == "k" else pack_values
        packed = pack(codes.reshape(*lead, tokens, width), self.bits)
        return packed, np.moveaxis(params, 0, -2)

    def dequantize(
        self, which: str, codes: NDArray[np.uint8], params: NDArray[np.float16]
    ) -> NDArray[np.float64]:
        """Return blocks [..., block_tokens, width] in float64."""
        width, tokens = self.width(which), self.block_tokens
        unpack = unpack_keys if which == "k" else unpack_values
        plain = unpack(codes, tokens, width, self.bits).astype(np.float64)
        wide = params.astype(np.float64)
        if self.per_channel(which):
            spread = np.repeat(wide, self.group_size, axis=-3)
        else:
            spread = np.swapaxes(np.repeat(wide, self.group_size, axis=-3), -3, -1)
        # [..., tokens, 2, width] in both cases.
        return np.asarray(plain * spread[..., 0, :] + spread[..., 1, :])

    def read(
        self,
        inputs: Mapping[str, Array],
        which: str,
        request: int,
        head: int,
        positions: Positions,
    ) -> NDArray[np.float64]:
        """Return rows [positions, width] of one head in float64."""
        length = int(inputs["seq_lens"][request])
        packed = length // self.block_tokens * self.block_tokens
        rows = np.empty((len(positions), self.width(which)))
        late = positions >= packed
        residual = inputs[f"{which}_residual"][request, head]
        rows[late] = residual[positions[late] - packed].astype(np.float64)
        blocks, at = np.unique(positions[~late] // self.block_tokens, return_inverse=True)
        if len(blocks):
            codes = inputs[f"{which}_codes"][request, head, blocks]
            params = inputs[f"{which}_params"][request, head, blocks]
            plain = self.dequantize(which, codes, params)
            rows[~late] = plain[at, positions[~late] % self.block_tokens]
        return rows

    def poison(self, inputs: Mapping[str, Array], live: Any) -> dict[str, Array]:
        """Return the arrays with NaN in params and residual rows that no query needs."""
        found = {name: inputs[name].copy() for name in ARRAYS if not name.endswith("codes")}
        for request, positions in live:
            packed = int(inputs["seq_lens"][request]) // self.block_tokens * self.block_tokens
            blocks = np.unique(positions[positions < packed] // self.block_tokens)
            rows = positions[positions >= packed] - packed
            for name, array in found.items():
                kept = rows if name.endswith("residual") else blocks
                dead = np.ones(array.shape[2], bool)
                dead[kept] = False
                array[request][:, dead] = np.nan
        return found


def empty_like(cache: QuantizedKVCache, batch: int, context: int) -> dict[str, Array]:
    """Return all arrays of zeros: a cache without tokens."""
    sizes = {"batch": batch, **cache.extents(context)}
    return {a.name: np.zeros(a.concrete(sizes), numpy_dtype(a.dtype)) for a in cache.arguments()}
