"""Bayesian search that starts from records of other tasks.

The first points are those that the other tasks hold to be the best. What comes of them says how far
the others can be trusted: a process whose mean is their mean slowdown learns which of them are
alike, and where all mislead (`wattune.cost_models.transfer_process`). Where they mislead
everywhere, it becomes the process of this task alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.search.bayesian import LISTED, RANDOM, Bayesian, Fitted
from wattune.compiler.search.encoding import Encoding
from wattune.compiler.search.task import Task
from wattune.compiler.search.transfer import SLOWEST, Transfer
from wattune.cost_models.gaussian_process import GaussianProcess
from wattune.cost_models.transfer_process import TransferProcess
from wattune.schedules.candidate import Candidate

Floats = NDArray[np.float64]

# Points that are taken on the word of others, before any of it is held against measurements.
LOOK = 6
# What the others say is expected to decide as much as this of whether a point runs.
_VALID = 0.3
# Points of which the fastest ones of a source show which knobs matter there.
_POOL, _SHOWN = 1024, 128


class WarmBayesian(Bayesian):
    """Takes the others' best points first, then those of the greatest expected improvement."""

    name = "bayesian"
    model_name = ""
    first: ClassVar[int] = LOOK

    def __init__(self, task: Task, model: Any, *args: Any, transfer: Transfer) -> None:
        """Start from what others say; physics, which they obeyed too, is not asked again."""
        super().__init__(task, None, *args)
        self._transfer = transfer
        self._encoding = encoding = WarmEncoding(self.task, transfer)
        self._cost = Fitted(encoding.cost)
        self._valid = Fitted(encoding.prior)

    def beginning(self) -> list[Candidate]:
        """Return the others' best points, and then the default candidates."""
        found = self._favourites
        return [*found, *(c for c in super().beginning() if c not in found)]

    def cut(self, costs: Floats) -> float:
        """Return a level that leaves apart what is to be held against the others' slowdowns."""
        return max(super().cut(costs), float(costs.min()) + math.log(SLOWEST))

    @cached_property
    def _favourites(self) -> list[Candidate]:
        """Return the points of the least mean slowdown on the sources."""
        task = self.task
        listed = task.product() <= LISTED
        rng = np.random.default_rng(self.seed)
        pool = list(task.enumerate()) if listed else task.spread(RANDOM, rng)
        if not listed:
            theirs = (Candidate(task.problem, task.target, s) for s in self._transfer.best)
            pool += islice((c for c in theirs if task.contains(c)), LOOK)
        order = np.argsort(self._transfer.columns(pool).mean(axis=1), kind="stable")
        return [pool[at] for at in order[:LOOK]]


class WarmEncoding(Encoding):
    """Rows of knobs, then what each source says; and the process of the cost, ``cost``."""

    def __init__(self, task: Task, transfer: Transfer) -> None:
        """Encode a task's points, and learn from the sources which knobs matter."""
        super().__init__(task)
        self._transfer = transfer
        groups, weights = self.prior.groups, self._relevance(task)
        sources = transfer.columns([]).shape[1]
        self.cost = TransferProcess(groups, weights, np.full(sources, 1 / sources))
        self.prior = GaussianProcess(
            np.append(groups, np.full(sources, len(weights))), np.append(weights, _VALID)
        )

    def rows(self, candidates: Sequence[Candidate]) -> Floats:
        """Return [n, columns of knobs + sources]."""
        found = super().rows(candidates)
        columns = self._transfer.columns(candidates)
        found[:, -columns.shape[1] :] = columns
        return found

    def _relevance(self, task: Task) -> Floats:
        """Return the weight of each group of knobs, the mean of ln(weight) over the sources."""
        pool = task.spread(_POOL, np.random.default_rng(0))
        knobs, found = super().rows(pool), [self.prior.weights]
        for source in self._transfer.columns(pool).T:
            # The fastest of them, fewer and fewer towards the slow.
            places = np.linspace(0, 1, min(_SHOWN, len(pool))) ** 2 * (len(pool) - 1)
            shown = np.argsort(source, kind="stable")[np.unique(places.astype(int))]
            if np.ptp(source[shown]) > 0:
                found.append(self.prior.fit(knobs[shown], source[shown]).weights)
        mean: Floats = np.exp(np.mean(np.log(found[1:] or found), axis=0))
        return mean
