"""How good predictions are. Costs throughout: latency or energy, less is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def _pair(predicted: ArrayLike, measured: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as vectors; a `ValueError` where they do not belong together."""
    p, m = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if p.ndim != 1 or p.shape != m.shape or not p.size:
        raise ValueError(f"shapes are {p.shape} and {m.shape}; allowed: two equal, [n] with n >= 1")
    return p, m


def ranks(values: ArrayLike) -> Floats:
    """Return the rank of each value, 1 the least; equal values share their mean rank."""
    array = np.asarray(values, np.float64)
    _, group, sizes = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    mean: Floats = (last - (sizes - 1) / 2)[group]
    return mean


def spearman(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Return the correlation of the ranks, -1 to 1; 0 where either side is constant."""
    p, m = (ranks(values) for values in _pair(predicted, measured))
    p, m = p - p.mean(), m - m.mean()
    scale = float(np.sqrt((p @ p) * (m @ m)))
    return float(p @ m) / scale if scale else 0.0


def pairwise_accuracy(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Return the share of pairs that are predicted in their measured order.

    Pairs with equal measured costs have no order and do not count; a pair with equal predictions
    counts half, so that a constant prediction scores 0.5. Without any pair the result is 1.
    """
    p, m = _pair(predicted, measured)
    right = pairs = 0.0
    for i in range(len(p) - 1):
        truth = np.sign(m[i + 1 :] - m[i])
        agreement = truth * np.sign(p[i + 1 :] - p[i])
        right += float(np.sum((agreement > 0) + 0.5 * ((agreement == 0) & (truth != 0))))
        pairs += float(np.count_nonzero(truth))
    return right / pairs if pairs else 1.0


def _best_of_first(predicted: ArrayLike, measured: ArrayLike, k: int) -> tuple[Floats, float]:
    """Return the least cost among the first 1, 2, ... k picks, and the least of all.

    Picks are in the order of the prediction; equal predictions in the order given. Beyond the
    last candidate nothing better can come.
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed: >= 1")
    p, m = _pair(predicted, measured)
    picked = m[np.argsort(p, kind="stable")[:k]]
    return np.minimum.accumulate(picked), float(m.min())


def average_peak_score(predicted: ArrayLike, measured: ArrayLike, k: int) -> float:
    """Return the mean over i <= k of (least cost of all) / (least cost of the first i picks).

    1 where the first pick is the best. With fewer than k candidates the mean is over all of them.
    """
    found, best = _best_of_first(predicted, measured, k)
    return float(np.mean(best / found))


def regret(predicted: ArrayLike, measured: ArrayLike, k: int) -> float:
    """Return (least cost of the first k picks) / (least cost of all) - 1: 0 is perfect."""
    found, best = _best_of_first(predicted, measured, k)
    return float(found[-1]) / best - 1.0
