"""The learned models: how far a candidate is from the physical prior, learned from records."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.base import CostModel, Floats, Prediction
from wattune.cost_models.boosting import CLASSIFICATION, Trees, require_xgboost
from wattune.cost_models.efficacy import ARMS, target_of
from wattune.cost_models.efficacy import weights as weights_by
from wattune.cost_models.energy_prior import EnergyPrior
from wattune.cost_models.examples import (
    Centres,
    Examples,
    group_of,
    machine_of,
    speed_weights,
    task_of,
)
from wattune.cost_models.matrix import Columns, FeatureMatrix, Rows
from wattune.cost_models.prior import Rates
from wattune.cost_models.prior_model import PRIOR_STD
from wattune.cost_models.task_process import LEAST_RECORDS, TaskProcess
from wattune.cost_models.tree_efficacy import tree_efficacy
from wattune.errors import DatabaseError, UnknownNameError
from wattune.schedules.candidate import Candidate, Record

MEMBERS = 5
# With fewer valid records than this the prior alone ranks better than anything learned.
_LEAST_RECORDS = 8
# A classifier needs some of both kinds.
_LEAST_FAILURES = 3
_STATE_VERSION = 4


class Regressor(Protocol):
    """An ensemble that was fitted to labels: see `Trees` and `Networks`."""

    def predict(self, matrix: Rows) -> tuple[Floats, Floats]:
        """Return the mean and its calibrated standard deviation, [n] each."""

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""


class LearnedModel(CostModel):
    """ln(latency) = ln(prior) + level of the task + an ensemble's correction.

    Where the ensemble knows its errors, a Gaussian process of the task's own records has a share in
    the correction (`TaskProcess`).

    ln(mean power) = ln(static power + energy of bytes and operations / latency) + a second
    ensemble's correction, which sees the latency: what it knows of energy is not what the first one
    knows of latency. A classifier learns from failures which candidates are valid. One model serves
    all problems of a tune: a task (static problem, machine, mode) has its own level, the ensembles
    are shared.
    """

    # Retraining costs time that grows with the records: it waits until there are so many times the
    # records, or so many more.
    worth_retraining: ClassVar[float]
    most_news: ClassVar[float] = math.inf

    def __init__(
        self,
        mode: str = "cold",
        rates: Mapping[str, Rates] | None = None,
        seed: int = 0,
        efficacy: str = "none",
        built: bool = False,
    ) -> None:
        """Predict for this mode; ``rates`` by `Target.key` replace the guessed ones.

        ``efficacy``: the score of `efficacy.ARMS` that weights training records. ``built``: facts
        of builds are features; `know` them of all candidates before they are predicted. Raises
        `MissingDependencyError` where a library is not installed.
        """
        require_xgboost()
        if efficacy not in ARMS:
            raise UnknownNameError("training-data score", efficacy, ARMS)
        self.efficacy = efficacy
        self.mode = mode
        self.seed = seed
        self._features = FeatureMatrix(rates, built)
        self._examples = Examples()
        self._trained_on = 0
        self._latency: Regressor | None = None
        self._power: Regressor | None = None
        self._validity: Trees | None = None
        self._levels = Centres()
        self._own: dict[str, TaskProcess | None] = {}
        self._energy = EnergyPrior()

    @abstractmethod
    def _fit(
        self, matrix: Rows, labels: Floats, weights: Floats, groups: Sequence[str]
    ) -> Regressor:
        """Fit an ensemble to labels [n]; candidates of a group are rivals."""

    @abstractmethod
    def _regressor(self, state: Mapping[str, Any]) -> Regressor:
        """Build the ensemble that a `Regressor.to_state` described."""

    @property
    def trained(self) -> bool:
        """Say whether latencies are predicted from records, not from the prior alone."""
        return self._latency is not None

    def know(self, facts: Mapping[Candidate, Mapping[str, float]]) -> None:
        """Take facts of builds."""
        for candidate, found in facts.items():
            self._features.know(candidate, found)

    def update(self, records: Sequence[Record]) -> None:
        """Learn from records; those whose template is gone or changed its space are left out."""
        self._examples.add(records, self._features)
        count, before = len(self._examples.rows), self._trained_on
        if count > before * self.worth_retraining or count >= before + self.most_news:
            self._train()

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Predict from what was learned, or from the prior alone before there is enough."""
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
        self._own = {}
        matrix = self._features.columns.stack(examples.rows)
        latency, power = np.array(examples.latency), np.array(examples.power)
        self._train_latency(matrix, latency, np.flatnonzero(~np.isnan(latency)))
        self._train_power(matrix, latency, power, np.flatnonzero(~np.isnan(power)))
        self._validity = None
        valid = ~np.isnan(latency)
        if min(valid.sum(), (~valid).sum()) >= _LEAST_FAILURES:
            labels, weights = valid.astype(np.float64), np.ones(len(valid))
            self._validity = Trees.fit(CLASSIFICATION, matrix, labels, weights, 1, self.seed)

    def _train_latency(self, matrix: Rows, latency: Floats, at: NDArray[np.int64]) -> None:
        if len(at) < _LEAST_RECORDS:
            return
        shown, measured = matrix[at], latency[at]
        groups = [self._examples.group[i] for i in at]
        weights = speed_weights(measured, groups)
        tasks = [self._examples.task[i] for i in at]
        residual = measured - self._features.log_prior(shown)
        self._levels = Centres.fit(residual, weights, tasks)
        labels = residual - self._levels.of(tasks)
        if self.efficacy != "none":
            noise = np.array([self._examples.noise[i] for i in at])
            target = target_of(measured, groups)
            scores = tree_efficacy(shown, labels, weights, target, noise, self.seed)
            weights = weights * weights_by(scores.score(self.efficacy))
        self._latency = self._fit(shown, labels, weights, groups)

    def _train_power(
        self, matrix: Rows, latency: Floats, power: Floats, at: NDArray[np.int64]
    ) -> None:
        if not len(at):
            return
        shown, seconds, measured = matrix[at], latency[at], power[at]
        machines = [self._examples.machine[i] for i in at]
        names = self._features.columns.names
        self._energy = EnergyPrior.fit(names, shown, seconds, measured, machines)
        if len(at) >= _LEAST_RECORDS:
            labels = measured - self._energy.log_power(names, shown, seconds, machines)
            given = self._with_latency(shown, seconds)
            self._power = self._fit(given, labels, np.ones(len(at)), machines)

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
        groups = np.array([group_of(candidate, self.mode) for candidate in candidates])
        for group in np.unique(groups):
            if (own := self._process_of(str(group))) is not None:
                at = groups == group
                difference[at], std[at] = own.mixed(matrix[at], difference[at], std[at])
        level_std = self._levels.std(tasks, PRIOR_STD)
        return prior + self._levels.of(tasks) + difference, np.hypot(std, level_std)

    def _process_of(self, group: str) -> TaskProcess | None:
        """Return the process of a group, fitted when it is first asked for after a training."""
        if group not in self._own:
            self._own[group] = self._fit_process(group)
        return self._own[group]

    def _fit_process(self, group: str) -> TaskProcess | None:
        examples, errors = self._examples, getattr(self._latency, "errors", np.zeros(0))
        latency = np.array(examples.latency[: self._trained_on])
        shown = np.flatnonzero(~np.isnan(latency))
        mine = np.flatnonzero([examples.group[at] == group for at in shown])
        if len(errors) != len(shown) or len(mine) < LEAST_RECORDS:
            return None
        at = shown[mine]
        matrix = self._features.columns.stack([examples.rows[i] for i in at])
        labels = latency[at] - self._features.log_prior(matrix)
        labels -= self._levels.of([examples.task[i] for i in at])
        weights = speed_weights(latency[at], [group] * len(at))
        names = self._features.columns.names
        return TaskProcess.fit(names, matrix, labels, errors[mine], weights)

    def _predict_power(
        self, candidates: Sequence[Candidate], matrix: Rows, latency: Floats
    ) -> tuple[Floats, Floats] | None:
        """Return ln(power) and its standard deviation, or None where no power was measured."""
        if not self._energy.machines:
            return None
        machines = [machine_of(candidate) for candidate in candidates]
        prior = self._energy.log_power(self._features.columns.names, matrix, latency, machines)
        if self._power is None:
            return prior, self._energy.std(machines)
        difference, std = self._power.predict(self._with_latency(matrix, latency))
        unseen = np.array([machine not in self._energy.machines for machine in machines])
        return prior + difference, np.where(unseen, np.hypot(std, self._energy.std(machines)), std)

    def _predict_valid(self, matrix: Rows) -> Floats:
        """Return the probability of being valid; the share so far where failures are too few."""
        if self._validity is not None:
            return self._validity.predict(matrix)[0]
        latency = np.array(self._examples.latency)
        failures = np.count_nonzero(np.isnan(latency))
        return np.full(len(matrix), 1 - failures / (len(latency) + 1))

    def to_state(self) -> dict[str, Any]:
        """Return everything, training records and ensembles alike, as plain data."""
        fitted = {"latency": self._latency, "power": self._power, "validity": self._validity}
        return {
            "version": _STATE_VERSION,
            "mode": self.mode,
            "seed": self.seed,
            "efficacy": self.efficacy,
            "built": self._features.built,
            "rates": {key: rates.to_json() for key, rates in self._features.rates.items()},
            "columns": self._features.columns.names,
            "examples": self._examples.to_state(),
            "trained_on": self._trained_on,
            "levels": self._levels.to_state(),
            "energy_prior": self._energy.to_state(),
            **{name: found and found.to_state() for name, found in fitted.items()},
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Become the model that `to_state` described; raises `DatabaseError` if it is newer."""
        if (version := state["version"]) != _STATE_VERSION:
            raise DatabaseError(
                f"a cost model has state version {version}, this program knows {_STATE_VERSION}"
            )
        self.mode, self.seed = str(state["mode"]), int(state["seed"])
        self.efficacy = str(state["efficacy"])
        rates = {key: Rates.from_json(value) for key, value in state["rates"].items()}
        self._features = FeatureMatrix(rates, bool(state.get("built")))
        self._features.columns = Columns(state["columns"])
        self._examples = Examples.from_state(state["examples"])
        self._trained_on = int(state["trained_on"])
        self._own = {}
        self._levels = Centres.from_state(state["levels"])
        self._energy = EnergyPrior.from_state(state["energy_prior"])
        self._latency, self._power = (
            self._regressor(found) if (found := state[name]) else None
            for name in ("latency", "power")
        )
        validity = state["validity"]
        self._validity = Trees.from_state(validity) if validity else None
