"""A Gaussian process of one task's own records, beside the ensemble that all tasks share.

Trees cut the space into boxes and learn from every task; a process is smooth and knows one task.
Their errors differ, so that a mean of both errs less than either. How much the process counts is
decided by errors on records that were not shown: of the ensemble by its members' own, of the
process by leaving one out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.gaussian_process import GaussianProcess
from wattune.cost_models.matrix import Rows

Floats = NDArray[np.float64]

# With fewer records a process of its own says less than it costs; with more only some are used.
LEAST_RECORDS, _MOST_RECORDS = 8, 256
# Features that tell a task's candidates apart, and their expected length over their whole range,
# which grows with the root of their number; divisibility matters for some knobs only.
_PARTS, _DERIVED = ("knob.", "template=", "align."), "align."
_LENGTH, _DERIVED_WEIGHT = 0.35, 0.3


@dataclass(frozen=True)
class TaskProcess:
    """A fitted process; ``columns`` of the feature matrix, which go from ``low`` by ``span``.

    ``share``: how much it counts beside the ensemble, 0 to 1.
    """

    columns: NDArray[np.int64]
    low: Floats
    span: Floats
    process: GaussianProcess
    rows: Floats
    labels: Floats
    share: float

    @classmethod
    def fit(
        cls, names: Sequence[str], matrix: Rows, labels: Floats, errors: Floats, weights: Floats
    ) -> Self | None:
        """Fit to labels [n]; ``errors`` [n] are the ensemble's. None where nothing can be told."""
        if len(labels) > _MOST_RECORDS:
            kept = np.linspace(0, len(labels) - 1, _MOST_RECORDS).astype(int)
            matrix, labels, errors, weights = (x[kept] for x in (matrix, labels, errors, weights))
        known = np.array([name.startswith(_PARTS) for name in names])
        numbers = np.nan_to_num(matrix[:, : len(names)].astype(np.float64))
        span = np.ptp(numbers, axis=0)
        columns = np.flatnonzero(known & (span > 0))
        if not len(columns) or np.ptp(labels) == 0:
            return None
        low, span = numbers.min(axis=0)[columns], span[columns]
        rows = (numbers[:, columns] - low) / span
        process = _prior([names[int(at)] for at in columns]).fit(rows, labels)
        own = np.average(process.left_out(rows, labels) ** 2, weights=weights)
        theirs = np.average(errors**2, weights=weights)
        share = float(theirs / (own + theirs)) if own + theirs > 0 else 0.5
        return cls(columns, low, span, process, rows, labels, share)

    def mixed(self, matrix: Rows, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
        """Return the ensemble's mean and standard deviation with those of the process, [n] each."""
        numbers = np.nan_to_num(matrix[:, self.columns].astype(np.float64))
        asked = (numbers - self.low) / self.span
        own, own_std = self.process.predict(self.rows, self.labels, asked)
        share = self.share
        variance = (1 - share) * std**2 + share * own_std**2
        return (1 - share) * mean + share * own, np.sqrt(variance)


def _prior(names: Sequence[str]) -> GaussianProcess:
    """Return what is expected of these features; columns of one knob's values share a weight."""
    knobs = [name.partition("=")[0] for name in names]
    distinct = list(dict.fromkeys(knobs))
    derived = [name.startswith(_DERIVED) for name in distinct]
    plain = 1 / (_LENGTH**2 * max(1, derived.count(False)))
    weights = np.array([_DERIVED_WEIGHT if each else plain for each in derived])
    groups = np.array([distinct.index(knob) for knob in knobs])
    return GaussianProcess(groups, weights)
