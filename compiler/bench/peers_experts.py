"""Peers of fused experts in torch: a linear layer for each expert, and grouped matrix products.

Both have the weights as dense bfloat16, whatever the format, and route within the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.peers_torch import load_torch
from wattune.compiler.bench.rotation import rotate
from wattune.ops import FusedMoe
from wattune.ops.dtypes import numpy_dtype
from wattune.ops.expert_weights import FORMATS
from wattune.ops.experts import touched

_NAMES = ("gate_up_proj", "down_proj")


class _Experts(Case):
    """What both ways share: dense weights that rotate, and the comparison."""

    # Products of bfloat16, and activations that are not quantised.
    tolerance = 0.03

    def __init__(self, setup: Setup) -> None:
        """Decode the weights, and copy them over the footprint."""
        torch = load_torch(setup.threads)
        problem = setup.problem
        assert isinstance(problem, FusedMoe)
        self.torch, self.problem = torch, problem
        self.expected = setup.expected["out"]
        self.x = _tensor(torch, setup.inputs["hidden_states"]).to(torch.bfloat16)
        self.ids = torch.from_numpy(np.array(setup.inputs["topk_ids"])).long()
        self.shares = torch.from_numpy(np.array(setup.inputs["topk_weights"]))
        dense = {name: _dense(setup.inputs[name], problem.format) for name in _NAMES}
        size = sum(array.nbytes for array in dense.values())
        self.moved = touched(problem) * size // problem.num_experts
        sets = rotate(dense, setup.footprint, self.moved)
        self.weights = [[_tensor(torch, views[name]) for name in _NAMES] for views in sets]
        self.copies = len(sets)

    def call(self, copy: int) -> Any:
        """Return the layer's output in float32."""
        gate_up, down = self.weights[copy]
        return self.layer(gate_up, down)

    def layer(self, gate_up: Any, down: Any) -> Any:
        """Compute the layer."""
        raise Unavailable("no way to compute it")

    def activate(self, both: Any) -> Any:
        """Return silu(gate) * up."""
        gate, up = both.chunk(2, -1)
        return self.torch.nn.functional.silu(gate) * up

    def error(self) -> float:
        """Compare with the reference."""
        return relative_error(self.call(0).numpy(), self.expected.astype(np.float32))


class PerExpert(_Experts):
    """A loop over the experts with tokens: gather, two linear layers, add (as in transformers)."""

    def layer(self, gate_up: Any, down: Any) -> Any:
        """Add each expert's rows to the output."""
        linear = self.torch.nn.functional.linear
        out = self.torch.zeros(self.x.shape, dtype=self.torch.float32)
        for expert in self.torch.unique(self.ids).tolist():
            tokens, slots = self.torch.where(self.ids == expert)
            h = self.activate(linear(self.x[tokens], gate_up[expert]))
            y = linear(h, down[expert])
            out.index_add_(0, tokens, y.float() * self.shares[tokens, slots, None])
        return out


class GroupedMm(_Experts):
    """Rows sorted by expert, two grouped products, and the weighted sum."""

    def layer(self, gate_up: Any, down: Any) -> Any:
        """Sort, multiply, put back, add."""
        torch = self.torch
        grouped = getattr(torch.nn.functional, "grouped_mm", None)
        if grouped is None:
            raise Unavailable("this torch has no grouped_mm")
        flat = self.ids.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(gate_up))
        ends = counts.cumsum(0).to(torch.int32)
        rows = self.x[order // self.ids.shape[1]]
        h = self.activate(grouped(rows, gate_up.transpose(-2, -1), offs=ends))
        y = grouped(h, down.transpose(-2, -1), offs=ends)
        placed = torch.empty(y.shape, dtype=torch.float32)
        placed[order] = y.float()
        return (placed.view(*self.ids.shape, -1) * self.shares[..., None]).sum(1)


def _dense(source: Any, format: str) -> Any:
    """Return the weights as bfloat16, expert by expert: in float64 they may not fit."""
    if format == "bf16":
        return source
    coding = FORMATS[format]
    return np.stack([coding.decode(s).astype(numpy_dtype("bfloat16")) for s in source])


def _tensor(torch: Any, array: Any) -> Any:
    if array.dtype == np.float32:
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
