"""Peers of block selection in torch: key bounds against the mean query, and ``topk``."""

from __future__ import annotations

from typing import Any

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.peers_attention import tensor
from wattune.compiler.bench.peers_torch import load_torch
from wattune.compiler.bench.rotation import rotate
from wattune.ops import BlockScore, SelectBlocks


class Score(Case):
    """The greater of a mean query's products with both bounds, in the bounds' dtype, summed."""

    # Products are rounded to 16 bits before they are summed.
    tolerance = 0.02

    def __init__(self, setup: Setup) -> None:
        """Copy the bounds over the footprint."""
        self.torch = torch = load_torch(setup.threads)
        problem = setup.problem
        assert isinstance(problem, BlockScore)
        self.problem = problem
        self.expected, self.moved = setup.expected["scores"], setup.moved
        if (setup.inputs["seq_lens"] != problem.context).any():
            raise Unavailable("needs requests of one length")
        self.q = tensor(torch, setup.inputs["q"])
        bounds = {name: setup.inputs[name] for name in ("k_min", "k_max")}
        self.sets = [
            tuple(tensor(torch, array) for array in views.values())
            for views in rotate(bounds, setup.footprint, self.moved)
        ]
        self.copies = len(self.sets)

    def call(self, copy: int) -> Any:
        """Return scores [batch, kv_heads, blocks]."""
        low, high = self.sets[copy]
        problem = self.problem
        grouped = self.q.view(problem.batch, -1, problem.kv_heads, problem.group, problem.head_dim)
        mean = (grouped.float().mean((1, 3)) * problem.scale).to(low.dtype).unsqueeze(2)
        return self.torch.maximum(low * mean, high * mean).sum(-1, dtype=self.torch.float32)

    def error(self) -> float:
        """Compare with the reference."""
        return relative_error(self.call(0).numpy(), self.expected)


class TopK(Case):
    """``torch.topk`` of as many scores as are chosen by them, in ascending order.

    Blocks that are kept whatever they score come beside; the peer does not add them.
    """

    tolerance = 0.0

    def __init__(self, setup: Setup) -> None:
        """Take the scores, which stay in the caches as a kernel before would leave them."""
        problem = setup.problem
        assert isinstance(problem, SelectBlocks)
        scores = setup.inputs["scores"]
        if not problem.counted or problem.query_tokens:
            raise Unavailable("needs a number of blocks, and no query tokens")
        if (setup.inputs["seq_lens"] != problem.context).any():
            raise Unavailable("needs requests of one length")
        self.torch = load_torch(setup.threads)
        self.count = min(problem.best(scores.shape[-1]), problem.max_blocks, scores.shape[-1])
        if problem.forced == "inside":
            self.count -= problem.always
        if self.count < 1:
            raise Unavailable("no block is chosen by its score")
        self.scores = tensor(self.torch, scores)
        self.expected = setup.expected["block_indices"]
        self.copies, self.moved = 1, setup.moved

    def call(self, copy: int) -> Any:
        """Return ascending indices [batch, kv_heads, count]."""
        return self.scores.topk(self.count, sorted=False).indices.sort().values

    def error(self) -> float:
        """Return the share of chosen blocks that are not in the reference's lists."""
        found = self.call(0).numpy().reshape(-1, self.count)
        lists = self.expected.reshape(len(found), -1)
        missing = [~np.isin(row, known) for row, known in zip(found, lists, strict=True)]
        return float(np.mean(missing))
