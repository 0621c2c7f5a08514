"""What the operators that route tokens to experts share: scores, choices, weights.

    s = sigmoid(logits), or softmax(logits) over the experts
    c = s + bias                                          # what experts are chosen by
    groups: g = sum of the two greatest c of a group with a bias, the greatest without;
            c = -inf outside of the topk_group groups of greatest g
    ids = the top_k greatest c, the first of equal ones
    w = s[ids]; renormalised: w / (sum w + 1e-20); times routed_scaling_factor

A choice is float32, as its bias is: bfloat16 would join biases near 7. Without a bias experts are
chosen by the logits, whose order is that of the scores before they are rounded. What is no number
(NaN, an infinity under a softmax or as its own choice) is chosen last, with weight 0, so that ids
are distinct whatever the logits are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.fields import error, integer, number, one_of
from wattune.ops.operator import Argument, Array, Problem, Tolerance

SCORING = ("sigmoid", "softmax")
EPSILON = 1e-20
MOST_EXPERTS = 4096
_LEAST = np.finfo(np.float32).min

Floats = NDArray[np.float64]
Choices = NDArray[np.float32]
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Routing(Problem):
    """The fields of problems that choose ``top_k`` of ``num_experts`` for every token.

    ``scoring_func``: sigmoid or softmax. ``e_score_correction_bias``: a float32 bias is given, for
    the choice alone. ``num_expert_group`` groups, of which ``topk_group`` are kept. Weights are
    ``renormalize``d to a sum of 1, then times ``routed_scaling_factor``. ``skew`` is that of
    inputs: the expert of rank r is as popular as about (r + 1)^-skew.
    """

    runtime: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: int
    num_experts: int
    top_k: int
    scoring_func: str = "sigmoid"
    e_score_correction_bias: bool = False
    renormalize: bool = True
    num_expert_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    dtype: str = "float32"
    skew: float = 0.0

    def check_routing(self) -> None:
        """Check the fields; a group of one has no second best."""
        integer(self, "tokens", 1)
        integer(self, "num_experts", 1, MOST_EXPERTS)
        integer(self, "top_k", 1, self.num_experts)
        one_of(self, "scoring_func", SCORING)
        for name in ("e_score_correction_bias", "renormalize"):
            # `1 in (False, True)` in Python, but a flag is not a number.
            if not isinstance(getattr(self, name), bool):
                raise error(self, name, "False, True")
        for name in ("routed_scaling_factor", "skew"):
            number(self, name)
        integer(self, "num_expert_group", 1, self.num_experts)
        if self.num_experts % self.num_expert_group:
            raise error(self, "num_expert_group", f"a divisor of num_experts ({self.num_experts})")
        integer(self, "topk_group", 1, self.num_expert_group)
        if self.grouped and self.e_score_correction_bias and self.group_size < 2:
            raise error(self, "num_expert_group", "groups of two experts or more, with a bias")
        if self.top_k > self.topk_group * self.group_size:
            most = self.topk_group * self.group_size
            raise error(self, "top_k", f"at most the experts of topk_group groups ({most})")

    @property
    def grouped(self) -> bool:
        """Say whether some groups are left out."""
        return self.topk_group < self.num_expert_group

    @property
    def group_size(self) -> int:
        """Return the experts of a group."""
        return self.num_experts // self.num_expert_group


def bias_argument(problem: Routing) -> tuple[Argument, ...]:
    """Return the bias, where the problem has one."""
    if not problem.e_score_correction_bias:
        return ()
    return (Argument("e_score_correction_bias", (problem.num_experts,), "float32", "input"),)


def result_arguments(problem: Routing) -> tuple[Argument, ...]:
    """Return what routing makes: ``topk_weights`` and ``topk_ids``, greatest choice first."""
    shape = ("tokens", problem.top_k)
    return (
        Argument("topk_weights", shape, "float32", "output"),
        Argument("topk_ids", shape, "int32", "output"),
    )


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow; NaN stays NaN."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def softmax(x: Floats) -> Floats:
    """Return the softmax over the last axis; NaN and +inf are left out and get NaN.

    -inf and the least number, which stands for it in many models, get 0, also where nothing else is
    left.
    """
    finite = np.where(np.isfinite(x) & (x > _LEAST), x, -np.inf)
    top = finite.max(-1, keepdims=True)
    weights = np.exp(finite - np.where(top > -np.inf, top, 0.0))
    total = weights.sum(-1, keepdims=True)
    found = weights / np.where(total > 0, total, 1.0)
    return np.asarray(np.where(np.isnan(x) | (x == np.inf), np.nan, found))


def scores(problem: Routing, logits: Array) -> Floats:
    """Return s in float64."""
    # A signalling NaN is no error here.
    with np.errstate(invalid="ignore"):
        wide = logits.astype(np.float64)
    return sigmoid(wide) if problem.scoring_func == "sigmoid" else softmax(wide)


def choices(problem: Routing, logits: Array, s: Floats, bias: Array | None) -> Choices:
    """Return c before groups are left out: -inf for what is no number."""
    if bias is None:
        # A logit of -inf is a score of 0: before what is no number.
        c = np.maximum(logits.astype(np.float32), _LEAST)
        return np.where(np.isnan(s), np.float32(-np.inf), c)
    c = s.astype(np.float32) + bias.astype(np.float32)
    return np.where(np.isnan(c), np.float32(-np.inf), c)


def group_values(problem: Routing, c: Choices) -> Choices:
    """Return g of every group: the sum of its two greatest choices, or the greatest one."""
    groups = np.sort(c.reshape(len(c), problem.num_expert_group, -1), -1)
    if not problem.e_score_correction_bias:
        return np.asarray(groups[..., -1])
    return np.asarray(groups[..., -1] + groups[..., -2])


def keep_groups(problem: Routing, c: Choices) -> Choices:
    """Return c with -inf outside of the groups that are kept."""
    if not problem.grouped:
        return c
    value = group_values(problem, c)
    kept = np.argsort(-value, -1, kind="stable")[:, : problem.topk_group]
    mask = np.zeros(value.shape, bool)
    np.put_along_axis(mask, kept, True, -1)
    return np.where(np.repeat(mask, problem.group_size, -1), c, np.float32(-np.inf))


def route(problem: Routing, logits: Array, bias: Array | None) -> tuple[Array, Ids]:
    """Return weights float32 and ids int32 [tokens, top_k], greatest choice first."""
    s = scores(problem, logits)
    c = keep_groups(problem, choices(problem, logits, s, bias))
    ids = np.argsort(-c, -1, kind="stable")[:, : problem.top_k]
    usable = np.take_along_axis(c, ids, -1) > -np.inf
    w = np.where(usable, np.take_along_axis(s, ids, -1), 0.0)
    if problem.renormalize:
        w = w / (w.sum(-1, keepdims=True) + EPSILON)
    return (w * problem.routed_scaling_factor).astype(np.float32), ids.astype(np.int32)


def weight_tolerance(problem: Routing) -> Tolerance:
    """Return the tolerance of ``topk_weights``."""
    reason = (
        "float32 exponentials, 2^-22 each and as much for an exponent of 100 times log2 e, divided "
        "by sums of float32"
    )
    return Tolerance(2e-5, 1e-7 * problem.routed_scaling_factor, reason)
