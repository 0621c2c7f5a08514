"""Inputs of routing: skewed logits, biases, what kernels get wrong, and no choice by a last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wattune.ops.dtypes import round_to
from wattune.ops.operator import Array
from wattune.ops.routing import Routing, choices, group_values, keep_groups, scores

Rows = NDArray[np.intp]

# Scores below are 0 in float32, or nothing beside a bias.
_NOTHING = 1e-30


def draw_logits(problem: Routing, rng: np.random.Generator) -> Array:
    """Draw logits: without a bias experts are a sample whose popularity has the skew."""
    popularity = -problem.skew * np.log1p(rng.permutation(problem.num_experts))
    noise = rng.gumbel(size=(problem.tokens, problem.num_experts))
    return round_to((popularity + noise).astype(np.float32), problem.dtype)


def draw_bias(problem: Routing, rng: np.random.Generator) -> Array:
    """Draw a bias as trained models have it: near 7, where bfloat16 knows eight values."""
    return rng.uniform(6.8, 7.1, problem.num_experts).astype(np.float32)


def hard_bias(problem: Routing, rng: np.random.Generator) -> Array:
    """Draw a bias so low that all choices are negative; many experts have the same."""
    steps = rng.integers(0, 5, problem.num_experts).astype(np.float32)
    return np.asarray(np.float32(-5) + steps / np.float32(16))


def harden(logits: Array) -> None:
    """Put in what kernels get wrong, a row after the other: NaN, infinities, ties."""
    experts = np.arange(logits.shape[1])
    for row, line in enumerate(logits):
        match row % 8:
            case 1:
                line[...] = line[0]
            case 2:
                line[1::3] = np.nan
            case 3:
                line[::2] = np.inf
            case 4:
                line[::5], line[1::2] = np.nan, -np.inf
            case 5:
                line[...] = (np.nan, -np.inf)[row // 8 % 2]
            case 6:
                line[...] = np.round(line.astype(np.float32))
            case 7:
                line[...] = experts % 3 * -200.0


def keep_apart(
    problem: Routing,
    logits: Array,
    bias: Array | None,
    margin: float,
    redraw: Callable[[Rows], None],
) -> None:
    """Redraw tokens until no choice is nearer to the next one than ``margin`` (1 + |choice|).

    Kernels may order those by a last bit. Equal scores with equal biases are ties for all.
    ``redraw`` draws some rows of ``logits`` anew.
    """
    rows = np.arange(len(logits))
    while len(rows := rows[_near(problem, logits[rows], bias, margin)]):
        redraw(rows)


def _near(problem: Routing, logits: Array, bias: Array | None, margin: float) -> NDArray[np.bool_]:
    """Say which tokens have choices, or groups, that are too near each other."""
    exact = scores(problem, logits)
    every = choices(problem, logits, exact, bias)
    c = keep_groups(problem, every)
    order = np.argsort(-c, -1, kind="stable")[:, : problem.top_k + 1]
    s = np.take_along_axis(np.where(exact < _NOTHING, 0.0, exact), order, -1)
    same = s[:, 1:] == s[:, :-1]
    if bias is not None:
        same &= bias[order[:, 1:]] == bias[order[:, :-1]]
    near = _close(np.take_along_axis(c, order, -1), margin) & ~same
    if not problem.grouped:
        return np.asarray(near.any(-1))
    # Which groups are kept matters, not their order. Equal ones may be so by chance.
    best = np.sort(group_values(problem, every), -1)[:, ::-1][:, : problem.topk_group + 1]
    constant = (exact == exact[:, :1]).all(-1)
    return np.asarray(near.any(-1) | _close(best, margin)[:, -1] & ~constant)


def _close(values: Array, margin: float) -> NDArray[np.bool_]:
    """Say which neighbours of descending values are nearer than the margin."""
    wide = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(wide[:, :-1] - wide[:, 1:])
    return np.asarray(gap < margin * (1 + np.abs(wide[:, 1:])))
