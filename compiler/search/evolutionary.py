"""Evolution guided by the cost model: hundreds of children are predicted, the best are measured.

A round breeds from the best measured candidates and from what an earlier round predicted to be
good but did not measure, adds all neighbours of the incumbents and random candidates, and lets the
best predicted ones breed again. The batch is taken from the top of all of them by predicted
objective; a part is chosen for its uncertainty and a part at random, so that a wrong model can be
found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.objective import LATENCY, Objective
from wattune.compiler.search.moves import distance
from wattune.compiler.search.plain_evolutionary import (
    EXPLORE,
    LEAST_PARENTS,
    PARENTS,
    PlainEvolutionary,
    rounded,
    speed_share,
)
from wattune.cost_models.base import CostModel, Prediction
from wattune.cost_models.gaussian_process import log_expected_improvement
from wattune.schedules.candidate import Candidate, Record, Schedule

Floats = NDArray[np.float64]

# Children of a generation, random candidates among the predicted ones, generations.
CHILDREN = 128
RANDOM = 64
GENERATIONS = 3
# Spaces of up to so many points are predicted whole: breeding would find little that is new.
LISTED = 256
# Candidates whose whole neighbourhood is predicted.
INCUMBENTS = 2
# Predicted but not measured candidates that live on to the next round.
CARRIED = 24
# Share of a batch that is chosen by the optimistic end of the prediction.
OPTIMISTIC = 0.5
# What one step from another candidate of the batch costs: batches should not hold near twins.
TWIN = 0.05
# What the model is sure to fail counts as this likely to run: models err.
LEAST_VALID = 1e-3


@dataclass(frozen=True)
class Pool:
    """Predicted candidates; ``expected`` and ``hoped`` are logarithms, the least is the best."""

    candidates: list[Candidate]
    prediction: Prediction
    expected: Floats
    hoped: Floats

    def best(self) -> list[Candidate]:
        """Return the candidates, the best expected first."""
        return [self.candidates[at] for at in np.argsort(self.expected, kind="stable")]


class Evolutionary(PlainEvolutionary):
    """Ranks children by predicted objective before any is measured."""

    name = "evolutionary"
    model_name = "xgboost"

    def __init__(self, *args: Any, **options: Any) -> None:
        """Start with nothing carried over."""
        super().__init__(*args, **options)
        self._carried: list[Candidate] = []

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return the best of a few hundred predicted candidates, and some random ones."""
        if self.model is None:
            return super().propose(count, rng)
        if len(self.ranked()) < LEAST_PARENTS:
            return self.samples(count, rng, self._first_shares(self.model))
        pool = self._evolve(self.model, rng)
        self.gain = self._gain(pool)
        explore, optimistic = rounded(EXPLORE * count, rng), rounded(OPTIMISTIC * count, rng)
        chosen = _pick(pool, pool.expected, count - explore - optimistic, [])
        chosen = _pick(pool, pool.hoped, count - explore, chosen)
        picked = {candidate.schedule for candidate in chosen}
        rest = (c for c in pool.best() if c.schedule not in picked)
        self._carried = list(islice(rest, CARRIED))
        return chosen + self.samples(count - len(chosen), rng, self.shares(), chosen)

    def state(self) -> dict[str, Any]:
        """Return the schedules that were carried over."""
        return {"carried": [candidate.schedule.to_json() for candidate in self._carried]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what was carried, as far as the task still has it."""
        task = self.task
        found = (
            Candidate(task.problem, task.target, Schedule.from_json(data))
            for data in state.get("carried", ())
        )
        self._carried = [candidate for candidate in found if task.contains(candidate)]

    def joules(self, records: Sequence[Record]) -> Floats:
        """Return measured energies, and predicted ones where only the latency was measured."""
        found = super().joules(records)
        missing = [at for at, record in enumerate(records) if np.isnan(found[at])]
        if missing and self.model is not None and np.isfinite(found).any():
            prediction = self.model.predict([records[at].candidate for at in missing])
            if prediction.energy is not None:
                latency = np.array([records[at].latency for at in missing])
                found[missing] = latency * prediction.energy / prediction.latency
        return found

    def _evolve(self, model: CostModel, rng: np.random.Generator) -> Pool:
        """Return the predicted candidates of all generations; of a small space all that are new."""
        if self.task.product() <= LISTED:
            return self._predicted(model, None, list(self.task.enumerate()))
        measured = self.ranked()
        carried = [candidate for candidate in self._carried if self.is_new(candidate)]
        first = [
            *carried,
            *(c for one in measured[:INCUMBENTS] for c in self.task.neighbours(one)),
            *self.breed(_alternating(measured[:PARENTS], carried), CHILDREN, rng),
            *self.samples(RANDOM, rng, self.shares()),
        ]
        pool = self._predicted(model, None, first)
        for _ in range(GENERATIONS - 1):
            parents = _alternating(measured[:PARENTS], pool.best()[:PARENTS])
            pool = self._predicted(model, pool, self.breed(parents, CHILDREN, rng))
        return pool

    def _predicted(self, model: CostModel, pool: Pool | None, more: Sequence[Candidate]) -> Pool:
        """Return the pool with the new ones among ``more``, predicted."""
        known = {candidate.schedule for candidate in pool.candidates} if pool else set()
        distinct = {c.schedule: c for c in more if self.is_new(c) and c.schedule not in known}
        added = list(distinct.values())
        if pool and not added:
            return pool
        found = model.predict(added)
        prediction = Prediction.joined(pool.prediction, found) if pool else found
        # All anew: places on a front are places among all.
        scores = self._scores(prediction)
        return Pool([*(pool.candidates if pool else ()), *added], prediction, *scores)

    def _scores(self, found: Prediction) -> tuple[Floats, Floats]:
        """Return logarithms of the objective as expected, and at the optimistic end."""
        best = min(record.latency for record in self.records.values())
        expected = log_scores(found, self.objective, best)
        spread = found.latency_std if found.energy_std is None else found.energy_std
        return expected, expected - spread

    def _gain(self, pool: Pool) -> float | None:
        """Return the greatest expected improvement in ln(latency) or, where it counts, ln(energy).

        None where nothing is left, the model knows of no energy yet, or a front is sought.
        """
        found, objective = pool.prediction, self.objective
        blind = objective.needs_energy and found.energy is None
        if not pool.candidates or blind or objective.kind == "pareto":
            return None
        known = [self.records[candidate.schedule] for candidate in self.ranked()[:1]]
        latency = np.array([record.latency for record in known])
        least = np.log(objective.scores(latency, self.joules(known)))
        if not np.isfinite(least).all():
            return None
        std = pool.expected - pool.hoped
        gains = log_expected_improvement(pool.expected, std, float(least[0]))
        return float(np.exp(gains.max()))

    def _first_shares(self, model: CostModel) -> dict[str, float]:
        """Return how often templates come up while little is measured: by the predicted default."""
        if self.records:
            return self.shares()
        defaults = self.task.defaults()
        seconds = model.predict(defaults).latency
        return {
            candidate.schedule.template: speed_share(float(value), float(seconds.min()))
            for candidate, value in zip(defaults, seconds, strict=True)
        }


def log_scores(found: Prediction, objective: Objective, best: float) -> Floats:
    """Return logarithms of the predicted objective over the chance to be valid, the least best.

    ``best`` is the least latency known, in seconds.
    """
    # Until energy has been learnt, latency is the best guide to it.
    wanted = LATENCY if found.energy is None else objective
    validity = np.log(np.maximum(found.valid, LEAST_VALID))
    return np.log(wanted.scores(found.latency, found.energy, best)) - validity


def _alternating(one: Sequence[Candidate], other: Sequence[Candidate]) -> list[Candidate]:
    """Take from both in turn."""
    return [c for pair in zip_longest(one, other) for c in pair if c is not None]


def _pick(pool: Pool, scores: Floats, total: int, chosen: Sequence[Candidate]) -> list[Candidate]:
    """Add the best of the pool to the chosen until there are ``total``, near twins last."""
    found, left = list(chosen), scores.copy()
    values = [candidate.schedule for candidate in pool.candidates]
    knobs = [schedule.values for schedule in values]

    def take(schedule: Schedule) -> None:
        for at, other in enumerate(values):
            if other == schedule:
                left[at] = np.inf
            elif other.template == schedule.template and distance(knobs[at], schedule.values) == 1:
                left[at] += TWIN

    for candidate in chosen:
        take(candidate.schedule)
    while len(found) < total and left.size and np.isfinite(left.min()):
        candidate = pool.candidates[int(left.argmin())]
        take(candidate.schedule)
        found.append(candidate)
    return found
