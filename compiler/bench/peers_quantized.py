"""A peer of attention to quantised caches in torch: codes of 8 bits, dequantised whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wattune.compiler.bench.attention import AttentionData
from wattune.compiler.bench.case import Setup, Unavailable
from wattune.compiler.bench.peers_attention import TorchAttention, attend_folded
from wattune.ops.kv_quantization import unpack_keys, unpack_values
from wattune.ops.operator import Array
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention


class Dequantize(TorchAttention):
    """uint8 codes in rows, times scale plus zero in bfloat16, then folded attention.

    Codes of fewer bits take a byte too: torch has no smaller type on the CPU.
    """

    def arrays(self, setup: Setup) -> dict[str, Array]:
        """Return codes [batch, heads, tokens, width] and their scales and zeros."""
        self.data.refuse("sinks", "soft_cap", "window", "block_size")
        problem, cache = self.problem, self.problem.quantized
        if problem.context % problem.block_tokens or problem.query_tokens > 1:
            raise Unavailable("needs whole blocks of tokens and one query token")
        found = {}
        for which, unpack in (("k", unpack_keys), ("v", unpack_values)):
            packed, params = setup.inputs[f"{which}_codes"], setup.inputs[f"{which}_params"]
            codes = unpack(packed, problem.block_tokens, cache.width(which), cache.bits)
            found[which] = codes.reshape(*codes.shape[:2], -1, codes.shape[-1])
            # [batch, heads, blocks, groups of tokens, 2, width] or [..., of channels, 2, tokens]
            scales = params.astype(np.float32)
            if not cache.per_channel(which):
                scales = np.moveaxis(scales, -1, 3)
            found[f"{which}_params"] = np.ascontiguousarray(scales)
        return found

    def read_bytes(self, arrays: dict[str, Array]) -> int:
        """Return the bytes of all: they are more than the problem must move."""
        return sum(array.nbytes for array in arrays.values())

    def call(self, copy: int) -> Sequence[Any]:
        """Return the output of all requests."""
        views = self.sets[copy]
        k, v = (self._plain(which, views[which], views[f"{which}_params"]) for which in "kv")
        return [attend_folded(self, self.q, k, v, None)]

    def _plain(self, which: str, codes: Any, params: Any) -> Any:
        bfloat16, size = self.torch.bfloat16, self.problem.group_size
        batch, heads, tokens, width = codes.shape
        if self.problem.quantized.per_channel(which):
            # Rows of a group lie one after the other.
            grouped = codes.view(batch, heads, tokens // size, size, width)
            scale, zero = params.view(batch, heads, tokens // size, 2, width).unbind(3)
            scale, zero = scale.unsqueeze(3), zero.unsqueeze(3)
        else:
            grouped = codes.view(batch, heads, tokens, width // size, size)
            scale, zero = params.view(batch, heads, tokens, width // size, 2, 1).unbind(4)
        plain = grouped.to(bfloat16) * scale.to(bfloat16) + zero.to(bfloat16)
        return plain.view(batch, heads, tokens, width).to(self.q.dtype)


def dequantized(setup: Setup) -> AttentionData:
    """Return the problem with dense caches of the dequantised values."""
    problem, inputs = setup.problem, setup.inputs
    assert isinstance(problem, QuantizedDecodeAttention)
    caches = {}
    positions = np.arange(problem.context)
    for which in ("k", "v"):
        shape = (problem.batch, problem.kv_heads, problem.context)
        plain = np.empty((*shape, problem.quantized.width(which)), np.float32)
        for request in range(problem.batch):
            for head in range(problem.kv_heads):
                plain[request, head] = problem.quantized.read(
                    inputs, which, request, head, positions
                )
        caches[f"{which}_cache"] = plain
    out = setup.expected["out"]
    return AttentionData(problem, inputs["q"], caches, inputs["seq_lens"], inputs.get("sinks"), out)
