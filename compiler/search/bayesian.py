"""Bayesian search: a Gaussian process on the knobs of one task, and expected improvement.

Where the space can be listed, every point that is left is predicted; in larger ones children and
neighbours of the best and random points are. The process learns ln(cost): what is slow is cut to
the same level, since where the bad points are bad to what degree says little of the best. A second
process learns from failures where points are valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.objective import LATENCY
from wattune.compiler.search.encoding import Encoding
from wattune.compiler.search.plain_evolutionary import PlainEvolutionary, rounded
from wattune.cost_models.gaussian_process import GaussianProcess, log_expected_improvement
from wattune.cost_models.transfer_process import TransferProcess
from wattune.schedules.candidate import Candidate, Record, Schedule

Floats = NDArray[np.float64]
Process = GaussianProcess | TransferProcess

# Records before the process is asked: a spread over all values of all knobs.
FIRST = 10
# Spaces of up to so many points are predicted whole; of larger ones so many points.
LISTED = 1 << 14
CHILDREN, RANDOM, INCUMBENTS = 512, 512, 4
# Costs above this quantile of the measured ones count as equal to it.
CUT = 0.8
# The relevance is fitted anew when there are so many times the records; every time while few.
REFIT, FEW = 1.1, 80
# Share of the points that is random, whatever the process says: it may be wrong.
EXPLORE = 0.05
# What is sure to fail counts as this likely to run: the process errs.
LEAST_VALID = 1e-3


class Fitted:
    """A process whose relevance is fitted anew when there is enough news."""

    def __init__(self, prior: Process) -> None:
        """Start with what is expected before anything is measured."""
        self.prior: Process = prior
        self.process: Process = prior
        self.count = 0

    def of(self, rows: Floats, labels: Floats) -> Process:
        """Return the process for these examples."""
        count = len(labels)
        if np.ptp(labels) == 0:
            return self.prior
        if not self.count or count < FEW or count >= REFIT * self.count:
            self.process, self.count = self.prior.fit(rows, labels), count
        return self.process

    def to_state(self) -> dict[str, Any]:
        """Return the relevance of the knobs, and of how many examples it is."""
        weights, noise = self.process.weights.tolist(), self.process.noise
        return {"weights": weights, "noise": noise, "count": self.count}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take over the relevance, if it is of the same knobs."""
        weights = np.array(state["weights"], np.float64)
        if weights.shape == self.prior.weights.shape:
            self.process = replace(self.prior, weights=weights, noise=float(state["noise"]))
            self.count = int(state["count"])


class Bayesian(PlainEvolutionary):
    """Takes the point of the greatest expected improvement, given what is measured."""

    name = "bayesian"
    model_name = "prior"
    # Records before the process is asked.
    first: ClassVar[int] = FIRST

    def __init__(self, *args: Any, **options: Any) -> None:
        """Start without a fitted process."""
        super().__init__(*args, **options)
        self._encoding = Encoding(self.task, self._expected if self.model else None)
        self._cost = Fitted(self._encoding.prior)
        self._valid = Fitted(self._encoding.prior)
        self._all: tuple[list[Candidate], Floats, dict[Schedule, int]] | None = None

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return a batch: each point is chosen as if those before it had come out as expected."""
        known = [r for r in self._sorted() if np.isfinite(r.latency)]
        if len(self.records) < self.first or len(known) < 2:
            return self.samples(count, rng)
        candidates, rows = self._left(rng)
        if not candidates:
            return self.samples(count, rng)
        shown, labels = self._examples(known)
        process = self._cost.of(shown, labels)
        explore = rounded(EXPLORE * count, rng)
        valid = np.log(self._validity(rows))
        chosen: list[int] = []
        while len(chosen) < min(count - explore, len(candidates)):
            mean, std = process.predict(shown, labels, rows)
            gain = log_expected_improvement(mean, std, float(labels.min())) + valid
            gain[chosen] = -np.inf
            if not chosen:
                self.gain = float(np.exp(gain.max()))
            at = int(gain.argmax())
            chosen.append(at)
            shown, labels = np.vstack([shown, rows[at]]), np.append(labels, mean[at])
        found = [candidates[at] for at in chosen]
        return found + self.samples(count - len(found), rng, taken=found)

    def state(self) -> dict[str, Any]:
        """Return what was fitted."""
        return {"cost": self._cost.to_state(), "valid": self._valid.to_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what was fitted, if it is of the same knobs."""
        for name, fitted in (("cost", self._cost), ("valid", self._valid)):
            if name in state:
                fitted.from_state(state[name])

    def _expected(self, candidates: Sequence[Candidate]) -> Floats:
        """Return ln(latency) as the model expects it, [n]: energy follows it, or is learnt."""
        assert self.model is not None
        logs: Floats = np.log(self.model.predict(candidates).latency)
        return logs

    def _sorted(self) -> list[Record]:
        """Return the records in an order that does not depend on when they came."""
        return sorted(
            self.records.values(),
            key=lambda r: (r.candidate.schedule.template, str(r.candidate.schedule.knobs)),
        )

    def _examples(self, known: list[Record]) -> tuple[Floats, Floats]:
        """Return rows and ln(cost) of valid records, the slow ones cut."""
        joules = self.joules(known)
        objective = self.objective if np.isfinite(joules).any() else LATENCY
        scores = objective.scores(np.array([record.latency for record in known]), joules)
        costs = np.log(np.where(np.isfinite(scores), scores, np.max(scores[np.isfinite(scores)])))
        labels = np.minimum(costs, self.cut(costs))
        return self._encoding.rows([record.candidate for record in known]), labels

    def cut(self, costs: Floats) -> float:
        """Return the ln(cost) beyond which all count as equally slow."""
        return float(np.quantile(costs, CUT))

    def _validity(self, rows: Floats) -> Floats:
        """Return how likely points are to run, [n]."""
        records = self._sorted()
        labels = np.array([record.valid for record in records], np.float64)
        if labels.all():
            return np.ones(len(rows))
        # What decides whether a point runs need not be what decides its cost.
        shown = self._encoding.rows([record.candidate for record in records])
        smooth = self._valid.of(shown, labels)
        found: Floats = np.clip(smooth.predict(shown, labels, rows)[0], LEAST_VALID, 1.0)
        return found

    def _left(self, rng: np.random.Generator) -> tuple[list[Candidate], Floats]:
        """Return the points to choose from, and their rows."""
        if self.task.product() > LISTED:
            best = self.ranked()
            pool = [
                *(near for one in best[:INCUMBENTS] for near in self.task.neighbours(one)),
                *self.breed(best[: 2 * FIRST], CHILDREN, rng),
                *self.samples(RANDOM, rng, self.shares()),
            ]
            new = list({c.schedule: c for c in pool if self.is_new(c)}.values())
            return new, self._encoding.rows(new)
        if self._all is None:
            listed = list(self.task.enumerate())
            places = {candidate.schedule: at for at, candidate in enumerate(listed)}
            self._all = listed, self._encoding.rows(listed), places
        listed, rows, places = self._all
        left = np.ones(len(listed), bool)
        taken = [places[schedule] for schedule in (*self.records, *self._pending)]
        left[taken] = False
        return [listed[at] for at in np.flatnonzero(left)], rows[left]
