"""Peers of attention in torch: its own attention, products and a softmax, gathered keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from wattune.compiler.bench.attention import AttentionData
from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.peers_torch import load_torch
from wattune.compiler.bench.rotation import rotate
from wattune.ops.operator import Array


def tensor(torch: Any, array: Array) -> Any:
    """Return a torch tensor of the same memory."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class TorchAttention(Case):
    """A torch function of q [batch, heads, tokens, dim] and caches that are rotated."""

    # A 16-bit weight and a 16-bit output, each rounded once.
    tolerance = 0.02

    def __init__(self, setup: Setup) -> None:
        """Copy the caches over the footprint."""
        self.torch = load_torch(setup.threads)
        self.data = AttentionData.make(setup)
        self.problem: Any = self.data.problem
        self.moved = setup.moved
        self.q = tensor(self.torch, self.data.q).transpose(1, 2)
        arrays = self.arrays(setup)
        self.sets = [
            {name: tensor(self.torch, array) for name, array in views.items()}
            for views in rotate(arrays, setup.footprint, self.read_bytes(arrays))
        ]
        self.copies = len(self.sets)

    def arrays(self, setup: Setup) -> dict[str, Array]:
        """Return what rotates."""
        return self.data.caches

    def read_bytes(self, arrays: dict[str, Array]) -> int:
        """Return how much of the arrays a call reads."""
        return self.moved

    @abstractmethod
    def call(self, copy: int) -> Any:
        """Return outputs [batch, heads, tokens, dim] of parts of the batch."""

    def error(self) -> float:
        """Compare with the reference."""
        found = self.torch.cat(tuple(self.call(0))).transpose(1, 2)
        return relative_error(found.to(self.torch.float32).numpy(), self.data.expected)


class Attend(TorchAttention):
    """Dense or sliding-window attention in one of `WAYS`; a window is a slice of the cache."""

    def __init__(self, setup: Setup, way: str) -> None:
        """Prepare slices and masks."""
        super().__init__(setup)
        if way == "matmul":
            # Scores are rounded to 16 bits before the softmax.
            self.tolerance = 0.05
        else:
            self.data.refuse("sinks", "soft_cap")
        self.way = partial(WAYS[way], self)
        self.spans = [
            (s.requests, s.keys, None if s.mask is None else self.torch.from_numpy(s.mask))
            for s in self.data.spans()
        ]

    def call(self, copy: int) -> Sequence[Any]:
        """Return the outputs of each span."""
        k, v = self.sets[copy].values()
        return [
            self.way(self.q[requests], k[requests, :, keys], v[requests, :, keys], mask)
            for requests, keys, mask in self.spans
        ]


def attend_gqa(case: TorchAttention, q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Attend with ``enable_gqa``."""
    return case.torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=case.problem.scale, enable_gqa=True
    )


def attend_folded(case: TorchAttention, q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Attend with the query heads of a KV head as its query tokens."""
    folded, mask = _fold(case, q, mask)
    out = case.torch.nn.functional.scaled_dot_product_attention(
        folded, k, v, attn_mask=mask, scale=case.problem.scale
    )
    return out.reshape(*q.shape[:3], -1)


def attend_matmul(case: TorchAttention, q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Attend with two products in the caches' dtype and a float32 softmax."""
    torch, problem = case.torch, case.problem
    folded, mask = _fold(case, q, mask)
    scores = (folded @ k.transpose(-1, -2)).float() * problem.scale
    if problem.soft_cap:
        scores = problem.soft_cap * torch.tanh(scores / problem.soft_cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if problem.sinks:
        sinks = torch.from_numpy(case.data.sinks).view(1, problem.kv_heads, problem.group, 1, 1)
        column = sinks.expand(len(q), -1, -1, problem.query_tokens, 1).reshape(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return (weights.to(v.dtype) @ v).reshape(*q.shape[:3], -1)


def _fold(case: TorchAttention, q: Any, mask: Any) -> tuple[Any, Any]:
    """Return q as [batch, kv_heads, group * tokens, dim], and the mask for it."""
    group = case.problem.group
    folded = q.reshape(len(q), case.problem.kv_heads, -1, q.shape[-1])
    return folded, None if mask is None else mask.repeat(group, 1)


WAYS = {"gqa": attend_gqa, "folded": attend_folded, "matmul": attend_matmul}


class Gather(TorchAttention):
    """Attention to listed blocks or tokens: gathered into a smaller cache first, then `WAYS`."""

    def __init__(self, setup: Setup) -> None:
        """Prepare the indices of blocks of ``unit`` keys."""
        super().__init__(setup)
        torch, problem = self.torch, self.problem
        self.data.refuse("sinks", "soft_cap", "window")
        lists, self.unit = listed(setup)
        shape = (problem.batch, problem.kv_heads, lists.shape[-1])
        self.index = (
            torch.arange(problem.batch)[:, None, None],
            torch.arange(problem.kv_heads)[None, :, None],
            torch.from_numpy(np.broadcast_to(lists, shape).astype(np.int64)),
        )

    def call(self, copy: int) -> Sequence[Any]:
        """Return the output of all requests."""
        k, v = (self._gathered(cache) for cache in self.sets[copy].values())
        return [attend_folded(self, self.q, k, v, None)]

    def _gathered(self, cache: Any) -> Any:
        blocks = cache.view(*cache.shape[:2], -1, self.unit, cache.shape[-1])[self.index]
        return blocks.view(*cache.shape[:2], -1, cache.shape[-1])


def listed(setup: Setup) -> tuple[Array, int]:
    """Return lists [batch, heads or 1, blocks] that are full, and the keys of a block."""
    problem: Any = setup.problem
    if "block_indices" in setup.inputs:
        lists, unit = setup.inputs["block_indices"], problem.block_size
    else:
        lists, unit = setup.inputs["token_indices"], 1
        lists = lists if lists.ndim == 3 else lists[:, None]
    if lists.ndim != 3 or (lists < 0).any():
        raise Unavailable("needs one full list a KV head")
    if problem.query_tokens > 1:
        raise Unavailable("needs one query token")
    if problem.context % unit or (setup.inputs["seq_lens"] != problem.context).any():
        raise Unavailable("needs requests of whole blocks")
    return lists, unit
