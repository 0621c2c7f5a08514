"""Which training records are worth most: learnability and quality scores (DELT).

Definitions: "Data Efficacy for Language Model Training", arXiv 2506.21545, carried over from text
to measurements. A record is worth much if training on it helps the *target* records, those that say
how to rank the good region now, and if its error shrinks as training goes on. Scores become
weights, a selection, or an order of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.errors import UnknownNameError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

ARMS = ("none", "tracin", "learnability", "quality", "lqs")
ORDERS = ("shuffle", "ascending", "descending", "folded2", "folded3", "folded5")

# The newest records, and the share of the fastest ones, that make the target.
_NEWEST, _ELITE = 8, 0.1
# Scores in standard deviations beyond this are no larger than this.
_CLIP = 3.0
_LEAST_WEIGHT, _MOST_WEIGHT = 0.25, 2.0


@dataclass(frozen=True)
class Efficacy:
    """Scores of n records, more is better.

    ``learnability``: how fast a record's own error shrinks; ``quality``: the cosine between what it
    asks for and what the target records ask for; ``tracin``: the inner product instead; ``lqs``:
    both, weighted step by step. What repeats of a measurement differ by is noise, which cannot be
    learned: records with much of it score less.
    """

    learnability: Floats
    quality: Floats
    tracin: Floats
    lqs: Floats

    def score(self, arm: str) -> Floats:
        """Return one arm's scores; ``none`` has the same for all."""
        if arm not in ARMS:
            raise UnknownNameError("training-data score", arm, ARMS)
        if arm == "none":
            return np.zeros(len(self.lqs))
        found: Floats = getattr(self, arm)
        return found


def target_of(latency: Floats, groups: Sequence[str]) -> Indices:
    """Return which records are the target: the newest 8, and the fastest tenth of their group.

    Records are in the order in which they came; ``latency`` is its logarithm, ``groups`` name those
    that are rivals. The group is that of the newest record.
    """
    mine = np.flatnonzero(np.array([group == groups[-1] for group in groups]))
    elite = mine[np.argsort(latency[mine], kind="stable")][: max(1, round(_ELITE * len(mine)))]
    return np.unique(np.concatenate([mine[-_NEWEST:], elite]))


def standardised(scores: Floats) -> Floats:
    """Return scores in standard deviations from their mean, at most 3; 0 where all are equal."""
    spread = float(scores.std())
    if not spread:
        return np.zeros(len(scores))
    found: Floats = np.clip((scores - scores.mean()) / spread, -_CLIP, _CLIP)
    return found


def weights(scores: Floats) -> Floats:
    """Return training weights: 1 + half the standardised score, between 1/4 and 2."""
    return np.clip(1 + 0.5 * standardised(scores), _LEAST_WEIGHT, _MOST_WEIGHT)


def selected(scores: Floats, share: float) -> Indices:
    """Return the records of the highest scores, ``share`` of all, in their order."""
    count = max(1, int(len(scores) * share))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def ordered(scores: Floats, order: str, rng: np.random.Generator) -> Indices:
    """Return a permutation of the records; equal scores are shuffled.

    ``foldedL``: L sweeps from low to high, the l-th of the records whose ascending rank is l modulo
    L. No record is lost or repeated.
    """
    shuffled = rng.permutation(len(scores))
    ascending = shuffled[np.argsort(scores[shuffled], kind="stable")]
    if order == "shuffle":
        return shuffled
    if order == "ascending":
        return ascending
    if order == "descending":
        return ascending[::-1]
    if order in ORDERS:
        return np.concatenate(folds(ascending, int(order.removeprefix("folded"))))
    raise UnknownNameError("training order", order, ORDERS)


def folds(order: Indices, count: int) -> list[Indices]:
    """Cut a permutation into ``count`` sweeps: the l-th takes every ``count``-th from l on."""
    return [order[start::count] for start in range(count)]
