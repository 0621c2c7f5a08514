"""How good predictions are. Costs throughout: latency or energy, less is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# A pair whose costs differ by fewer standard errors of the difference has no order.
_SIGNIFICANT = 2.0
# A band of latencies reaches this far to either side of its middle; fewer members than this have
# no ranks to speak of.
_BAND = 0.05
_LEAST_IN_BAND = 5


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


def pairwise_accuracy(
    predicted: ArrayLike, measured: ArrayLike, error: ArrayLike | None = None
) -> float:
    """Return the share of pairs that are predicted in their measured order.

    With the standard ``error`` of each measured cost only pairs that differ by more than two
    standard errors of the difference count: the order of the others is chance. Pairs with equal
    measured costs never count; a pair with equal predictions counts half, so that a constant
    prediction scores 0.5. Without any pair the result is 1.
    """
    p, m = _pair(predicted, measured)
    e = np.zeros(len(m)) if error is None else _pair(error, measured)[0]
    right = pairs = 0.0
    for i in range(len(p) - 1):
        difference = m[i + 1 :] - m[i]
        ordered = np.abs(difference) > _SIGNIFICANT * np.hypot(e[i + 1 :], e[i])
        agreement = np.sign(difference) * np.sign(p[i + 1 :] - p[i])
        right += float(np.sum(ordered & (agreement > 0)) + 0.5 * np.sum(ordered & (agreement == 0)))
        pairs += float(np.count_nonzero(ordered))
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


def coverage(predicted: ArrayLike, measured: ArrayLike, std: ArrayLike, sigmas: float) -> float:
    """Return the share of costs whose logarithm is within ``sigmas`` of its predicted one.

    ``std`` is that of the logarithm. A calibrated normal has 0.683 within 1 and 0.954 within 2.
    """
    p, m = _pair(predicted, measured)
    s, _ = _pair(std, measured)
    return float(np.mean(np.abs(np.log(p / m)) <= sigmas * s))


def negative_log_likelihood(predicted: ArrayLike, measured: ArrayLike, std: ArrayLike) -> float:
    """Return the mean of -ln p(ln measured) under normals about ln predicted: less is better.

    It punishes both errors beyond the standard deviation and a standard deviation beyond them.
    """
    p, m = _pair(predicted, measured)
    s, _ = _pair(std, measured)
    z = np.log(p / m) / s
    return float(np.mean(0.5 * z**2 + np.log(s) + 0.5 * np.log(2 * np.pi)))


def banded_spearman(
    predicted: ArrayLike, measured: ArrayLike, latency: ArrayLike, band: float = _BAND
) -> float | None:
    """Return Spearman's correlation among candidates that are equally fast, within ``band``.

    Latencies are cut into bands of (1 + band) / (1 - band) from the fastest on; the result is the
    mean over bands of at least 5 candidates, by their size. For mean power this is the skill on
    energy that is not skill on latency. None where no band is large enough.
    """
    p, m = _pair(predicted, measured)
    t, _ = _pair(latency, measured)
    width = np.log((1 + band) / (1 - band))
    number = np.floor(np.log(t / t.min()) / width).astype(int)
    members = [np.flatnonzero(number == which) for which in np.unique(number)]
    large = [at for at in members if len(at) >= _LEAST_IN_BAND]
    if not large:
        return None
    skill = [spearman(p[at], m[at]) for at in large]
    return float(np.average(skill, weights=[len(at) for at in large]))
