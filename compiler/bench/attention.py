"""What the peers of attention start from: contiguous HND caches, and which keys queries see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.case import Setup, Unavailable
from wattune.ops.attention import Attention, causal
from wattune.ops.kv_cache import KVCache
from wattune.ops.operator import Array

CACHES = ("k_cache", "v_cache")


@dataclass(frozen=True)
class Span:
    """Requests that one call serves, their keys, and who sees them where not all queries do."""

    requests: slice
    keys: slice
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class AttentionData:
    """Inputs of one problem; caches are [batch, kv_heads, capacity, width] whatever its layout.

    A problem with quantised caches has none of them.
    """

    problem: Attention
    q: Array
    caches: dict[str, Array]
    lengths: Array
    sinks: Array | None
    expected: Array

    @classmethod
    def make(cls, setup: Setup) -> AttentionData:
        """Take what a peer needs from the problem's own inputs."""
        problem, inputs = setup.problem, setup.inputs
        assert isinstance(problem, Attention)
        return cls(
            problem,
            inputs["q"],
            {n: heads_first(problem.cache, inputs, n) for n in CACHES if n in inputs},
            inputs["seq_lens"],
            inputs.get("sinks"),
            setup.expected["out"],
        )

    def spans(self) -> Iterator[Span]:
        """Yield the calls that serve all requests: one where all are of the same length."""
        lengths, batch = self.lengths.tolist(), len(self.lengths)
        if len(set(lengths)) == 1:
            yield self._span(slice(0, batch), lengths[0])
            return
        for request, length in enumerate(lengths):
            yield self._span(slice(request, request + 1), length)

    def _span(self, requests: slice, length: int) -> Span:
        problem = self.problem
        if length < problem.query_tokens:
            raise Unavailable("a request is shorter than its query tokens")
        keys = slice(max(0, length - problem.visible), length)
        seen = causal(problem, length, np.arange(keys.start, keys.stop))
        return Span(requests, keys, None if seen.all() else seen)

    def refuse(self, *names: str) -> None:
        """Raise `Unavailable` for a problem with one of these fields."""
        for name in names:
            if getattr(self.problem, name, None):
                raise Unavailable(f"it has no {name}")


def heads_first(cache: KVCache, inputs: Any, name: str) -> Array:
    """Return a cache as [batch, kv_heads, capacity, width]; contiguous HND ones as they are."""
    array: Array = inputs[name]
    if cache.layout == "NHD":
        array = np.swapaxes(array, 1, 2)
    if cache.page_size:
        # [batch, max_pages, kv_heads, page_size, width]
        pages = np.swapaxes(array[inputs["page_table"]], 1, 2)
        array = pages.reshape(*pages.shape[:2], -1, pages.shape[-1])
    return array
