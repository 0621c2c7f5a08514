"""The second half of a round: which candidates are measured for energy, and what that teaches."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wattune.compiler.objective import Objective
from wattune.compiler.search.energy_policy import (
    Decision,
    Forecast,
    Policy,
    count_to_measure,
    drifted,
    energies_left,
    next_fraction,
    pick,
    trust,
)
from wattune.cost_models.base import CostModel
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.target import Target

# The facts of a record with energy: the relative spread of its windows, how many they were, and
# the mean power that the cost model had predicted.
SPREAD, WINDOWS = "energy_spread", "energy_windows"
PREDICTED_WATTS = "predicted_watts"
# Latencies are measured once, and one that is this much slower may not be.
NOISE = 0.01


@dataclass(frozen=True)
class Choice:
    """What a round measures for energy, and the predicted mean power where a model says one."""

    considered: int
    chosen: tuple[Candidate, ...]
    sentinels: tuple[Candidate, ...]
    incumbent: Record | None
    watts: Mapping[Candidate, float]

    @property
    def candidates(self) -> list[Candidate]:
        """Return all that are measured, the incumbent last."""
        again = [self.incumbent.candidate] if self.incumbent else []
        return [*self.chosen, *self.sentinels, *again]


class EnergyStage:
    """One problem's energies in one tune: chooses, judges the model, adapts the fraction."""

    def __init__(self, objective: Objective, seed: int = 0, policy: Policy | None = None) -> None:
        """Measure everything within the slack until enough is known."""
        self.objective, self.seed = objective, seed
        self.policy = policy or Policy()
        self.fraction = 1.0
        self.forecasts: list[Forecast] = []
        self.decisions: list[Decision] = []

    def choose(
        self, history: Sequence[Record], model: CostModel | None, planned: int = 0
    ) -> Choice:
        """Choose among the problem's valid records that are near the best latency.

        Without a model nothing says which are worth it: all of them are. ``planned``: how many
        latencies the tune is to have of the problem.
        """
        fastest = _fastest(history)
        energies = [record for record in history if record.joules is not None]
        known = {record.candidate for record in energies}
        waiting = self._near(fastest, known)
        watts = _watts(model, waiting)
        incumbent = self._incumbent(energies)
        if not waiting:
            return Choice(0, (), (), None, {})
        scores = np.array([r.latency * watts.get(r.candidate, 1.0) for r in waiting])
        count = len(waiting)
        if watts:
            left = energies_left(max(planned, len(fastest)), len(energies), self.policy)
            count = count_to_measure(count, self.fraction, incumbent is not None, left, self.policy)
        at, random = pick(scores, count, self._rng(waiting))
        chosen = tuple(waiting[i].candidate for i in at)
        sentinels = tuple(waiting[i].candidate for i in random)
        return Choice(len(waiting), chosen, sentinels, incumbent, watts)

    def told(self, choice: Choice, records: Sequence[Record]) -> Decision:
        """Judge the model by the new energies and set the next round's fraction."""
        measured = [record for record in records if record.joules]
        again = [r for r in measured if choice.incumbent and _is(r, choice.incumbent)]
        new = [record for record in measured if record not in again]
        self.forecasts += [
            _forecast(record, choice.watts[record.candidate])
            for record in new
            if record.candidate in choice.watts
        ]
        found = trust(self.forecasts, self.policy)
        before = choice.incumbent and choice.incumbent.joules
        ratio = again[-1].joules / before if again and again[-1].joules and before else None
        spreads = [one.spread for one in self.forecasts if one.spread is not None]
        moved = ratio is not None and drifted(ratio, spreads, self.policy)
        following, reason = next_fraction(
            self.fraction, len(self.forecasts), found, moved, self.policy
        )
        random = sum(record.candidate in choice.sentinels for record in new)
        decision = Decision(
            choice.considered,
            len(new),
            random,
            self.fraction,
            following,
            reason,
            ratio,
            found.snr_db,
            found.ceiling_db,
            found.skill,
        )
        self.decisions.append(decision)
        self.fraction = following
        return decision

    def to_state(self) -> dict[str, Any]:
        """Return fraction, forecasts and decisions as plain data."""
        return {
            "fraction": self.fraction,
            "forecasts": [asdict(one) for one in self.forecasts],
            "decisions": [decision.to_json() for decision in self.decisions],
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `to_state` was."""
        self.fraction = float(state["fraction"])
        self.forecasts = [Forecast(**one) for one in state["forecasts"]]
        self.decisions = decisions_of(state)

    def _near(self, fastest: Mapping[Candidate, Record], known: set[Candidate]) -> list[Record]:
        """Return what has no energy yet and is within the slack of the least latency.

        While the model learns a few slower ones too. Where the objective sets no bound on latency,
        the least energy may be far from the least latency: then everything counts as near.
        """
        records = sorted(fastest.values(), key=lambda record: record.latency)
        new = [record for record in records if record.candidate not in known]
        slack = self.objective.slack
        if slack is None or not records:
            return new
        limit = (1 + slack) * (1 + NOISE) * records[0].latency
        early = self.policy.early if len(known) < self.policy.learning else 0
        return [record for at, record in enumerate(new) if record.latency <= limit or at < early]

    def _incumbent(self, energies: Sequence[Record]) -> Record | None:
        """Return the newest record of the candidate that the objective likes best so far."""
        if not energies:
            return None
        latency = np.array([record.latency for record in energies])
        joules = np.array([record.joules for record in energies], np.float64)
        best = energies[int(np.argmin(self.objective.decisive.scores(latency, joules)))]
        return [record for record in energies if _is(record, best)][-1]

    def _rng(self, waiting: Sequence[Record]) -> np.random.Generator:
        salt = zlib.crc32(waiting[0].candidate.problem.key.encode())
        return np.random.default_rng([self.seed, salt, len(self.forecasts), len(waiting)])


def decisions_of(state: Mapping[str, Any]) -> list[Decision]:
    """Return the decisions, round by round, that a stage's state holds."""
    return [Decision(**decision) for decision in state["decisions"]]


def energy_state(fingerprint: str, mode: str, problem: Problem, target: Target) -> str:
    """Return the name under which a database keeps a problem's energy stage."""
    digest = hashlib.sha256(f"{problem.key}{target.key}".encode()).hexdigest()[:24]
    return f"energy/{fingerprint}/{mode}/{digest}"


def _fastest(history: Sequence[Record]) -> dict[Candidate, Record]:
    """Return each valid candidate's fastest record."""
    found: dict[Candidate, Record] = {}
    for record in history:
        known = found.get(record.candidate)
        if record.valid and (known is None or record.latency < known.latency):
            found[record.candidate] = record
    return found


def _watts(model: CostModel | None, records: Sequence[Record]) -> dict[Candidate, float]:
    """Predict mean power; empty where the model has seen no energy yet."""
    if model is None or not records:
        return {}
    found = model.predict([record.candidate for record in records])
    if found.energy is None:
        return {}
    power = found.energy / found.latency
    return {record.candidate: float(w) for record, w in zip(records, power, strict=True)}


def _forecast(record: Record, watts: float) -> Forecast:
    assert record.joules is not None
    spread = record.facts.get(SPREAD)
    if spread is not None:
        spread /= math.sqrt(max(record.facts.get(WINDOWS, 1.0), 1.0))
    return Forecast(math.log(record.joules / record.latency), math.log(watts), spread)


def _is(record: Record, other: Record) -> bool:
    return record.candidate == other.candidate
