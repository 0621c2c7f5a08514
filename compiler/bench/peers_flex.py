"""flex_attention of torch, compiled, on listed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wattune.compiler.bench.case import Setup, Unavailable
from wattune.compiler.bench.peers_attention import TorchAttention, listed


class Flex(TorchAttention):
    """``flex_attention`` with a block mask of each KV head's own blocks."""

    def __init__(self, setup: Setup) -> None:
        """Build the mask and compile."""
        super().__init__(setup)
        self.data.refuse("sinks", "soft_cap", "window")
        lists, unit = listed(setup)
        try:
            from torch.nn.attention.flex_attention import flex_attention
        except ImportError:
            raise Unavailable("this torch has no flex_attention") from None
        self.mask = self._mask(lists, unit)
        self.attend = self.torch.compile(flex_attention, dynamic=False)
        try:
            self.call(0)
        except Exception as error:  # what a compiler may raise is not listed anywhere
            first = next(iter(str(error).strip().splitlines()), "")
            raise Unavailable(f"torch.compile: {type(error).__name__}: {first[:200]}") from None

    def _mask(self, lists: Any, unit: int) -> Any:
        """Return the mask: only full blocks, the same for the query heads of a KV head."""
        from torch.nn.attention.flex_attention import BlockMask

        torch, problem = self.torch, self.problem
        heads = np.repeat(lists, problem.group, 1)
        count = torch.full((*heads.shape[:2], 1), heads.shape[-1], dtype=torch.int32)
        index = torch.zeros(*heads.shape[:2], 1, problem.context // unit, dtype=torch.int32)
        index[..., : heads.shape[-1]] = torch.from_numpy(np.ascontiguousarray(heads))[:, :, None]
        return BlockMask.from_kv_blocks(
            torch.zeros_like(count),
            torch.zeros_like(index),
            count,
            index,
            BLOCK_SIZE=(1, unit),
            seq_lengths=(1, problem.context),
        )

    def call(self, copy: int) -> Sequence[Any]:
        """Return the output of all requests."""
        k, v = self.sets[copy].values()
        scale = self.problem.scale
        return [self.attend(self.q, k, v, block_mask=self.mask, scale=scale, enable_gqa=True)]
