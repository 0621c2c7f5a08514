"""The learned model: boosted trees on how far a candidate is from the physical prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wattune.cost_models.base import CostModel, Floats, Prediction
from wattune.cost_models.boosting import CLASSIFICATION, REGRESSION, Trees, require_xgboost
from wattune.cost_models.examples import Centres, Examples, machine_of, speed_weights, task_of
from wattune.cost_models.matrix import Columns, FeatureMatrix, Rows
from wattune.cost_models.prior import Rates
from wattune.cost_models.prior_model import PRIOR_STD
from wattune.errors import DatabaseError
from wattune.schedules.candidate import Candidate, Record

_MEMBERS = 5
# With fewer valid records than this the prior alone ranks better than trees do.
_LEAST_RECORDS = 8
# A classifier needs some of both kinds.
_LEAST_FAILURES = 3
# Retraining costs time that grows with the records; below 2 % more it would change nothing.
_WORTH_RETRAINING = 1.02
# How far the power of a machine that was never measured may be off, as a logarithm.
_POWER_STD = 0.5
_STATE_VERSION = 1


class XGBoostModel(CostModel):
    """ln(latency) = ln(prior) + level of the task + trees; an ensemble for the uncertainty.

    A second ensemble learns ln(mean power) given the latency as soon as records have joules; a
    classifier learns from failures which candidates are valid. One model serves all problems of
    a tune: a task (static problem, machine, mode) has its own level, trees are shared.
    """

    name: ClassVar[str] = "xgboost"

    def __init__(
        self, mode: str = "cold", rates: Mapping[str, Rates] | None = None, seed: int = 0
    ) -> None:
        """Predict for this mode; ``rates`` by `Target.key` replace the guessed ones.

        Raises `MissingDependencyError` where xgboost is not installed.
        """
        require_xgboost()
        self.mode = mode
        self.seed = seed
        self._features = FeatureMatrix(rates)
        self._examples = Examples()
        self._trained_on = 0
        self._latency: Trees | None = None
        self._power: Trees | None = None
        self._validity: Trees | None = None
        self._task_levels = Centres()
        self._machine_levels = Centres()

    def update(self, records: Sequence[Record]) -> None:
        """Learn from records; those whose template is gone or changed its space are left out."""
        self._examples.add(records, self._features)
        if len(self._examples.rows) > self._trained_on * _WORTH_RETRAINING:
            self._train()

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Predict from the trees, or from the prior alone before there are enough records."""
        matrix = self._features.rows(candidates, self.mode)
        latency, latency_std = self._predict_latency(candidates, matrix)
        power = self._predict_power(candidates, matrix, latency)
        valid = self._predict_valid(matrix)
        if power is None:
            return Prediction(np.exp(latency), latency_std, valid)
        return Prediction(
            latency=np.exp(latency),
            latency_std=latency_std,
            valid=valid,
            energy=np.exp(latency + power[0]),
            energy_std=np.hypot(latency_std, power[1]),
        )

    def _train(self) -> None:
        """Fit everything anew: with few hundred records that is fast, and forgets nothing."""
        examples = self._examples
        self._trained_on = len(examples.rows)
        matrix = self._features.columns.stack(examples.rows)
        latency, power = np.array(examples.latency), np.array(examples.power)
        self._train_latency(matrix, latency, np.flatnonzero(~np.isnan(latency)))
        self._train_power(matrix, latency, power, np.flatnonzero(~np.isnan(power)))
        self._validity = None
        valid = ~np.isnan(latency)
        if min(valid.sum(), (~valid).sum()) >= _LEAST_FAILURES:
            weights = np.ones(len(valid))
            self._validity = Trees.fit(
                CLASSIFICATION, matrix, valid.astype(np.float64), weights, 1, self.seed
            )

    def _train_latency(self, matrix: Rows, latency: Floats, at: Any) -> None:
        if len(at) < _LEAST_RECORDS:
            return
        shown, measured = matrix[at], latency[at]
        weights = speed_weights(measured, [self._examples.group[i] for i in at])
        tasks = [self._examples.task[i] for i in at]
        residual = measured - self._features.log_prior(shown)
        self._task_levels = Centres.fit(residual, weights, tasks)
        labels = residual - self._task_levels.of(tasks)
        self._latency = Trees.fit(REGRESSION, shown, labels, weights, _MEMBERS, self.seed)

    def _train_power(self, matrix: Rows, latency: Floats, power: Floats, at: Any) -> None:
        if not len(at):
            return
        shown, measured = self._with_latency(matrix[at], latency[at]), power[at]
        machines = [self._examples.machine[i] for i in at]
        weights = np.ones(len(at))
        self._machine_levels = Centres.fit(measured, weights, machines)
        if len(at) >= _LEAST_RECORDS:
            labels = measured - self._machine_levels.of(machines)
            self._power = Trees.fit(REGRESSION, shown, labels, weights, _MEMBERS, self.seed)

    def _with_latency(self, matrix: Rows, latency: Floats) -> Rows:
        """Put before the features: log2 of the latency, and of its ratio to the prior.

        Power follows from how much is moved and computed a second, not from how much in all.
        """
        ratio = latency - self._features.log_prior(matrix)
        extra = np.stack([latency, ratio], axis=1) / math.log(2.0)
        return np.concatenate([extra.astype(np.float32), matrix], axis=1)

    def _predict_latency(
        self, candidates: Sequence[Candidate], matrix: Rows
    ) -> tuple[Floats, Floats]:
        """Return ln(latency) and its standard deviation, [n] each."""
        prior = self._features.log_prior(matrix)
        if self._latency is None:
            return prior, np.full(len(candidates), PRIOR_STD)
        tasks = [task_of(candidate, self.mode) for candidate in candidates]
        difference, std = self._latency.predict(matrix)
        level_std = self._task_levels.std(tasks, PRIOR_STD)
        return prior + self._task_levels.of(tasks) + difference, np.hypot(std, level_std)

    def _predict_power(
        self, candidates: Sequence[Candidate], matrix: Rows, latency: Floats
    ) -> tuple[Floats, Floats] | None:
        """Return ln(power) and its standard deviation, or None where no power was measured."""
        if not self._machine_levels.counts:
            return None
        machines = [machine_of(candidate) for candidate in candidates]
        mean = self._machine_levels.of(machines)
        std = self._machine_levels.std(machines, _POWER_STD)
        if self._power is None:
            return mean, std
        difference, trees_std = self._power.predict(self._with_latency(matrix, latency))
        return mean + difference, np.hypot(std, trees_std)

    def _predict_valid(self, matrix: Rows) -> Floats:
        """Return the probability of being valid; the share so far where failures are too few."""
        if self._validity is not None:
            return self._validity.predict(matrix)[0]
        latency = np.array(self._examples.latency)
        failures = np.count_nonzero(np.isnan(latency))
        return np.full(len(matrix), 1 - failures / (len(latency) + 1))

    def to_state(self) -> dict[str, Any]:
        """Return everything, training records and trees alike, as plain data."""
        trees = {"latency": self._latency, "power": self._power, "validity": self._validity}
        return {
            "version": _STATE_VERSION,
            "mode": self.mode,
            "seed": self.seed,
            "rates": {key: rates.to_json() for key, rates in self._features.rates.items()},
            "columns": self._features.columns.names,
            "examples": self._examples.to_state(),
            "trained_on": self._trained_on,
            "task_levels": self._task_levels.to_state(),
            "machine_levels": self._machine_levels.to_state(),
            **{name: found and found.to_state() for name, found in trees.items()},
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Become the model that `to_state` described; raises `DatabaseError` if it is newer."""
        if (version := state["version"]) != _STATE_VERSION:
            raise DatabaseError(
                f"a cost model has state version {version}, this program knows {_STATE_VERSION}"
            )
        self.mode, self.seed = str(state["mode"]), int(state["seed"])
        rates = {key: Rates.from_json(value) for key, value in state["rates"].items()}
        self._features = FeatureMatrix(rates)
        self._features.columns = Columns(state["columns"])
        self._examples = Examples.from_state(state["examples"])
        self._trained_on = int(state["trained_on"])
        self._task_levels = Centres.from_state(state["task_levels"])
        self._machine_levels = Centres.from_state(state["machine_levels"])
        self._latency, self._power, self._validity = (
            Trees.from_state(found) if (found := state[name]) else None
            for name in ("latency", "power", "validity")
        )
