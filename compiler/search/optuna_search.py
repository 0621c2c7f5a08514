"""Optuna's samplers as strategies, for comparison: ``optuna:tpe``, ``optuna:gp`` and the like.

Optuna (https://optuna.org) knows neither constraints nor that a point was measured before, so that
what it suggests outside the space is pruned at once and what it repeats gets its known value; none
of both counts as an evaluation. Its samplers have their documented defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from wattune.compiler.search.strategy import Strategy
from wattune.compiler.search.task import Branch
from wattune.errors import MissingDependencyError
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.space import Value, Values

# Suggestions per wanted candidate before a random one takes its place.
_ATTEMPTS = 100

_TEMPLATE = "template"


class OptunaStrategy(Strategy):
    """One study of one sampler; numbers are suggested by their place among a knob's values."""

    sampler: ClassVar[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        """Start a study; `MissingDependencyError` where Optuna is not installed."""
        super().__init__(*args, **options)
        if find_spec("optuna") is None:
            raise MissingDependencyError("optuna", f"strategy {self.name!r}", "bench-search")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers: Mapping[str, Callable[..., Any]] = {
            "tpe": optuna.samplers.TPESampler,
            "gp": optuna.samplers.GPSampler,
            "nsga2": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }
        self._optuna = optuna
        self._study = optuna.create_study(sampler=samplers[self.sampler](seed=self.seed))
        self._asked: dict[Schedule, Any] = {}

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return what the sampler suggests and nobody has measured."""
        found: list[Candidate] = []
        for _ in range(_ATTEMPTS * count):
            if len(found) == count:
                return found
            trial = self._study.ask()
            candidate = self._suggested(trial)
            schedule = candidate.schedule
            if schedule in self.records:
                self._tell(trial, self.records[schedule])
            elif not self.task.contains(candidate) or schedule in self._asked:
                self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
            elif self.is_new(candidate):
                self._asked[schedule] = trial
                found.append(candidate)
        return found + self.samples(count - len(found), rng, taken=found)

    def tell(self, records: Sequence[Record]) -> None:
        """Pass records on; what the sampler did not suggest is added to the study."""
        super().tell(records)
        for record in records:
            if self.task.contains(record.candidate):
                trial = self._asked.pop(record.candidate.schedule, None)
                if trial is None:
                    self._study.enqueue_trial(self._parameters(record.candidate))
                    trial = self._study.ask()
                    self._suggested(trial)
                self._tell(trial, record)

    def release(self) -> None:
        """Prune what was suggested but not measured."""
        super().release()
        for trial in self._asked.values():
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        self._asked.clear()

    def _tell(self, trial: Any, record: Record) -> None:
        joules = np.array([np.nan if record.joules is None else record.joules])
        best = min(known.latency for known in self.records.values())
        score = float(self.objective.decisive.scores(np.array([record.latency]), joules, best)[0])
        if np.isfinite(score):
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)

    def _suggested(self, trial: Any) -> Candidate:
        """Return the point that a trial's sampler chooses, of the space or not."""
        branches = {branch.template.name: branch for branch in self.task.branches}
        names = list(branches)
        name = trial.suggest_categorical(_TEMPLATE, names) if len(names) > 1 else names[0]
        values: Values = {}
        for knob in branches[name].space.knobs:
            key = self._key(branches[name], knob.name)
            if knob.ordered:
                values[knob.name] = knob.values[trial.suggest_int(key, 0, len(knob.values) - 1)]
            else:
                values[knob.name] = trial.suggest_categorical(key, knob.values)
        return self.task.candidate(branches[name], values)

    def _parameters(self, candidate: Candidate) -> dict[str, Value]:
        """Return a candidate in the study's words."""
        branch, values = self.task.branch(candidate), candidate.schedule.values
        found: dict[str, Value] = {}
        if len(self.task.branches) > 1:
            found[_TEMPLATE] = branch.template.name
        for knob in branch.space.knobs:
            value = values[knob.name]
            found[self._key(branch, knob.name)] = (
                knob.values.index(value) if knob.ordered else value
            )
        return found

    def _key(self, branch: Branch, knob: str) -> str:
        """Return a knob's name in the study: templates may have knobs of one name."""
        return f"{branch.template.name}.{knob}" if len(self.task.branches) > 1 else knob


class OptunaTPE(OptunaStrategy):
    """The tree-structured Parzen estimator."""

    name = "optuna:tpe"
    sampler = "tpe"


class OptunaGP(OptunaStrategy):
    """A Gaussian process with expected improvement."""

    name = "optuna:gp"
    sampler = "gp"


class OptunaNSGA2(OptunaStrategy):
    """A genetic algorithm; of one objective here, as all strategies."""

    name = "optuna:nsga2"
    sampler = "nsga2"


class OptunaRandom(OptunaStrategy):
    """Optuna's random sampler."""

    name = "optuna:random"
    sampler = "random"
