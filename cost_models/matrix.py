"""From feature names to matrix columns that never move, and candidates to rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.features import PRIOR, features
from wattune.cost_models.prior import Rates
from wattune.errors import WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate
from wattune.schedules.space import Space
from wattune.schedules.target import Target
from wattune.schedules.template import template_of

Rows = NDArray[np.float32]

# A search of a few thousand candidates a second revisits most of them; rows are ~400 bytes.
_CACHED_ROWS = 50_000


class Columns:
    """Feature names in the order in which they first came up; a column never changes its place."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Start with known names."""
        self.names: list[str] = []
        self._index: dict[str, int] = {}
        for name in names:
            self._place(name)

    def _place(self, name: str) -> int:
        at = self._index.get(name)
        if at is None:
            at = self._index[name] = len(self.names)
            self.names.append(name)
        return at

    def row(self, found: Mapping[str, float]) -> Rows:
        """Return one row, as long as all columns known by now; absent numbers are NaN."""
        places = [self._place(name) for name in found]
        row = self.blank()
        row[places] = list(found.values())
        return row

    def blank(self) -> Rows:
        """Return the row of nothing: 0 where a value has its own column, NaN for a number."""
        return np.array([0.0 if "=" in name else np.nan for name in self.names], np.float32)

    def stack(self, rows: Sequence[Rows]) -> Rows:
        """Return the matrix [n, columns] of rows made at any time."""
        matrix = np.tile(self.blank(), (len(rows), 1))
        for line, row in zip(matrix, rows, strict=True):
            line[: len(row)] = row
        return matrix


class FeatureMatrix:
    """Turns candidates into rows of `features`, and remembers them."""

    def __init__(self, rates: Mapping[str, Rates] | None = None, built: bool = False) -> None:
        """Take the measured rates of targets, by `Target.key`.

        ``built``: rows have the facts of builds, which are those of `know`.
        """
        self.columns = Columns()
        self.rates = dict(rates or {})
        self.built = built
        self._facts: dict[Candidate, Mapping[str, float]] = {}
        self._rows: dict[tuple[Candidate, str], Rows] = {}
        self._tasks: dict[tuple[str, Problem, Target], tuple[Space, Rates | None]] = {}

    def usable(self, candidate: Candidate) -> bool:
        """Say whether the candidate's template is still there and its space still holds it.

        Records outlive templates; features of what no longer exists cannot be computed.
        """
        try:
            template = template_of(candidate)
            if not template.applies(candidate.problem, candidate.target):
                return False
            return self._task(candidate)[0].contains(candidate.schedule.values)
        except WattuneError:
            return False

    def know(self, candidate: Candidate, facts: Mapping[str, float]) -> None:
        """Remember the facts of a candidate's build."""
        if self.built and self._facts.get(candidate) != facts:
            self._facts[candidate] = facts
            for mode in ("cold", "hot"):
                self._rows.pop((candidate, mode), None)

    def row(self, candidate: Candidate, mode: str) -> Rows:
        """Return the features of one candidate."""
        key = (candidate, mode)
        row = self._rows.get(key)
        if row is None:
            space, rates = self._task(candidate)
            facts = self._facts.get(candidate)
            row = self.columns.row(features(candidate, mode, rates, space, facts))
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            self._rows[key] = row
        return row

    def rows(self, candidates: Sequence[Candidate], mode: str) -> Rows:
        """Return the matrix [n, columns]."""
        return self.columns.stack([self.row(candidate, mode) for candidate in candidates])

    def log_prior(self, matrix: Rows) -> NDArray[np.float64]:
        """Return the natural logarithm of the prior's seconds, [n]."""
        if not len(matrix):
            return np.empty(0)
        column = matrix[:, self.columns.names.index(PRIOR)]
        return column.astype(np.float64) * math.log(2.0)

    def _task(self, candidate: Candidate) -> tuple[Space, Rates | None]:
        problem, target = candidate.problem, candidate.target
        key = (candidate.schedule.template, problem, target)
        found = self._tasks.get(key)
        if found is None:
            space = template_of(candidate).space(problem, target)
            found = self._tasks[key] = (space, self.rates.get(target.key))
        return found
