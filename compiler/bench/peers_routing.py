"""Peers of routing in torch: the gate, scores and ``topk``, a whole router, a sort of the pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable
from wattune.compiler.bench.peers_attention import tensor
from wattune.compiler.bench.peers_torch import TorchCase, load_torch
from wattune.ops import MoeAlignBlockSize, MoeGate, MoeTopk


class GateLinear(TorchCase):
    """``torch.nn.functional.linear`` in float32, as transformers' routers do, or in bfloat16."""

    # What bfloat16 loses, which routes some tokens elsewhere.
    tolerance = 0.02

    def __init__(self, setup: Setup, dtype: str) -> None:
        """Convert the weight, once; tokens are converted in a call."""
        problem, torch = setup.problem, load_torch(setup.threads)
        assert isinstance(problem, MoeGate)
        self.kind, self.expected = getattr(torch, dtype), setup.expected["router_logits"]
        weight = tensor(torch, setup.inputs["gate_weight"]).to(self.kind)
        x = tensor(torch, setup.inputs["hidden_states"])
        super().__init__(torch, x, weight.view(torch.uint8).view(-1).numpy(), setup.footprint)
        self.weights = [view.view(self.kind).view(weight.shape) for view in self.views]

    def call(self, copy: int) -> Any:
        """Return the logits."""
        return self.torch.nn.functional.linear(self.x.to(self.kind), self.weights[copy])

    def error(self) -> float:
        """Compare with the product in float64."""
        return self.compare(self.call(0), self.expected)


class ScoresTopk(Case):
    """``torch.sigmoid`` or ``softmax``, then ``torch.topk``: no bias, no groups, no weights."""

    # Which of equal scores torch takes is its own business.
    tolerance = 0.01

    def __init__(self, setup: Setup) -> None:
        """Take the logits, which stay in the caches as a kernel before would leave them."""
        problem = setup.problem
        assert isinstance(problem, MoeTopk)
        self.problem, self.torch = problem, load_torch(setup.threads)
        self.logits = tensor(self.torch, setup.inputs["gating_output"])
        self.expected = setup.expected["topk_ids"]
        self.comparable = not (problem.e_score_correction_bias or problem.grouped)
        self.copies, self.moved = 1, setup.moved

    def scores(self) -> Any:
        """Return the scores of all experts."""
        if self.problem.scoring_func == "softmax":
            return self.logits.softmax(-1, dtype=self.torch.float32)
        return self.logits.float().sigmoid()

    def call(self, copy: int) -> Any:
        """Return the ids that the scores alone choose."""
        return self.scores().topk(self.problem.top_k).indices

    def error(self) -> float:
        """Return the share of tokens that are routed otherwise, where the work is the same."""
        found = np.sort(self.call(0).numpy(), -1)
        return float((found != np.sort(self.expected, -1)).any(-1).mean()) * self.comparable


class Router(ScoresTopk):
    """What transformers' routers do: bias, groups, ``topk``, weights, their sum and scale."""

    def __init__(self, setup: Setup) -> None:
        """Take the bias too."""
        super().__init__(setup)
        self.comparable = True
        bias = setup.inputs.get("e_score_correction_bias")
        self.bias = None if bias is None else tensor(self.torch, bias)

    def call(self, copy: int) -> Any:
        """Return the ids, once weights are there."""
        problem, scores = self.problem, self.scores()
        choices = scores if self.bias is None else scores + self.bias
        if problem.grouped:
            choices = self._kept(choices)
        ids = choices.topk(problem.top_k, sorted=False).indices
        weights = scores.gather(1, ids)
        if problem.renormalize:
            weights /= weights.sum(-1, keepdim=True) + 1e-20
        weights *= problem.routed_scaling_factor
        return ids

    def _kept(self, choices: Any) -> Any:
        problem = self.problem
        groups = choices.view(len(choices), problem.num_expert_group, -1)
        best = groups.topk(1 if self.bias is None else 2).values.sum(-1)
        kept = best.topk(problem.topk_group, sorted=False).indices
        mask = self.torch.ones_like(best, dtype=self.torch.bool).scatter_(1, kept, False)
        return groups.masked_fill(mask.unsqueeze(-1), float("-inf")).view_as(choices)


class StableSort(Case):
    """``torch.sort`` of the pairs by expert and their counts: offsets, without blocks."""

    tolerance = 0.0

    def __init__(self, setup: Setup) -> None:
        """Take the ids."""
        problem = setup.problem
        assert isinstance(problem, MoeAlignBlockSize)
        if problem.local_experts:
            raise Unavailable("needs all experts here")
        self.problem, self.torch = problem, load_torch(setup.threads)
        self.ids = tensor(self.torch, setup.inputs["topk_ids"])
        self.expected = setup.expected["sorted_token_ids"]
        self.copies, self.moved = 1, setup.moved

    def call(self, copy: int) -> Any:
        """Return the order of the pairs, once offsets are there."""
        flat = self.ids.view(-1)
        order = flat.sort(stable=True).indices
        self.torch.bincount(flat, minlength=self.problem.num_experts).cumsum(0)
        return order

    def error(self) -> float:
        """Return the share of pairs that are elsewhere in the order."""
        pairs = self.ids.numel()
        placed = self.expected[self.expected < pairs]
        return float((self.call(0).numpy() != placed).mean())
