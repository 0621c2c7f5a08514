"""Flash attention of ggml as llama.cpp calls it, with float16 or 8-bit caches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.attention import AttentionData
from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.ggml import Ggml, Graphs, quantized
from wattune.compiler.bench.peers_quantized import dequantized
from wattune.compiler.bench.rotation import places, tile

# A graph takes a few kilobytes.
MOST_GRAPHS = 1024

Bytes = NDArray[np.uint8]


class FlashAttention(Case):
    """``ggml_flash_attn_ext`` on caches of one type; a window is a view of the cache."""

    tolerance = 0.02

    def __init__(self, setup: Setup, type_name: str) -> None:
        """Convert the caches; build a graph for every place where a call's caches start."""
        plain = "k_cache" in setup.inputs
        self.data = AttentionData.make(setup) if plain else dequantized(setup)
        self.data.refuse("sinks", "block_size")
        spans = list(self.data.spans())
        if len(spans) > 1 or spans[0].mask is not None:
            raise Unavailable("needs one query token and requests of one length")
        self.keys, self.type_name, self.moved = spans[0].keys, type_name, setup.moved
        self.ggml = Ggml()
        packed = [self._packed(setup, name) for name in self.data.caches]
        starts = self._starts(setup, packed)
        self.copies = len(starts[0])
        results = self.copies * (4 * self.data.expected.size + 64)
        regions = sum(int(s.max()) + 2 * p.size for s, p in zip(starts, packed, strict=True))
        size = regions + results + 4 * self.data.q.size
        self.graphs = Graphs(self.ggml, setup.threads, self.copies, size)
        self._build(packed, starts)

    def _packed(self, setup: Setup, name: str) -> Bytes:
        cache = self.data.caches[name]
        rows = np.ascontiguousarray(cache.reshape(-1, cache.shape[-1]), np.float32)
        if rows.shape[1] % 32:
            raise Unavailable("needs head dimensions that are multiples of 32")
        return quantized(self.ggml, self.type_name, rows)

    def _starts(self, setup: Setup, packed: list[Bytes]) -> list[NDArray[np.int64]]:
        sizes = {str(i): data.size for i, data in enumerate(packed)}
        # Of its own format: more than the problem must move where that has fewer bits.
        seen = (self.keys.stop - self.keys.start) / max(1, self.data.problem.context)
        starts = places(sizes, setup.footprint, int(seen * sum(sizes.values())))
        apart = all(
            b - a >= sizes[name] for name, s in starts.items() for a, b in pairwise(sorted(s))
        )
        if not apart and self.type_name != "f16":
            raise Unavailable(f"blocks of {self.type_name} cannot start anywhere")
        return [s[:MOST_GRAPHS] for s in starts.values()]

    def _build(self, packed: list[Bytes], starts: list[NDArray[np.int64]]) -> None:
        graphs, problem = self.graphs, self.data.problem
        batch, tokens, heads, dim = self.data.q.shape
        q = graphs.tensor("f32", dim, tokens, heads, batch)
        graphs.fill(q, np.swapaxes(self.data.q, 1, 2).astype(np.float32))
        views = [
            self._views(data, at, cache.shape)
            for data, at, cache in zip(packed, starts, self.data.caches.values(), strict=True)
        ]
        for k, v in zip(*views, strict=True):
            options = (problem.scale, 0.0, problem.soft_cap)
            graphs.add(self.ggml.ggml_flash_attn_ext(graphs.context, q, k, v, None, *options))

    def _views(self, data: Bytes, starts: NDArray[np.int64], shape: tuple[int, ...]) -> list[int]:
        """Return a tensor of the visible keys at every place of one region."""
        batch, heads, capacity, width = shape
        row = data.size // (batch * heads * capacity)
        rows = -(-(int(starts.max()) + data.size) // row)
        region = self.graphs.tensor(self.type_name, width, rows)
        tile(self.graphs.bytes_of(region), data)
        count, first = self.keys.stop - self.keys.start, self.keys.start * row
        strides = (row, row * capacity, row * capacity * heads)
        return [
            self.ggml.ggml_view_4d(
                self.graphs.context, region, width, count, heads, batch, *strides, int(at) + first
            )
            for at in starts
        ]

    def call(self, copy: int) -> int:
        """Compute one graph."""
        return self.graphs.compute(copy)

    def error(self) -> float:
        """Compare with the reference."""
        expected = self.data.expected
        return relative_error(self.graphs.result(0, *expected.shape), expected)
