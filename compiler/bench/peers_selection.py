"""Peers of block selection in torch: key bounds against the mean query."""

from __future__ import annotations

from typing import Any

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.peers_attention import tensor
from wattune.compiler.bench.peers_torch import load_torch
from wattune.compiler.bench.rotation import rotate
from wattune.ops import BlockScore


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
