"""The prior as a model: what physics alone says. A learned one must beat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wattune.cost_models.base import CostModel, Prediction
from wattune.cost_models.energy_prior import EnergyPrior
from wattune.cost_models.examples import Examples, machine_of
from wattune.cost_models.matrix import Columns, FeatureMatrix
from wattune.cost_models.prior import Rates
from wattune.schedules.candidate import Candidate, Record

# A roofline is seldom right within less than a factor of two.
PRIOR_STD = 0.7


class PriorModel(CostModel):
    """Predicts the roofline's time; of records it learns the constants of energy alone."""

    name: ClassVar[str] = "prior"

    def __init__(self, mode: str = "cold", rates: Mapping[str, Rates] | None = None) -> None:
        """Predict for this mode; ``rates`` by `Target.key` replace the guessed ones."""
        self.mode = mode
        self._features = FeatureMatrix(rates)
        self._examples = Examples()
        self._energy = EnergyPrior()

    @property
    def rates(self) -> Mapping[str, Rates]:
        """Return the measured rates of targets, by `Target.key`."""
        return self._features.rates

    def update(self, records: Sequence[Record]) -> None:
        """Fit the static power and the energy of bytes and operations to records with joules."""
        metered = [record for record in records if record.joules is not None]
        if not self._examples.add(metered, self._features):
            return
        found = self._examples
        known = ~np.isnan(found.power)
        self._energy = EnergyPrior.fit(
            self._features.columns.names,
            self._features.columns.stack(found.rows)[known],
            np.array(found.latency)[known],
            np.array(found.power)[known],
            [name for name, keep in zip(found.machine, known, strict=True) if keep],
        )

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Return the roofline's times, and energies where some were measured."""
        count = len(candidates)
        matrix = self._features.rows(candidates, self.mode)
        latency, std = self._features.log_prior(matrix), np.full(count, PRIOR_STD)
        if not self._energy.machines:
            return Prediction(np.exp(latency), std, np.ones(count))
        machines = [machine_of(candidate) for candidate in candidates]
        power = self._energy.log_power(self._features.columns.names, matrix, latency, machines)
        return Prediction(
            latency=np.exp(latency),
            latency_std=std,
            valid=np.ones(count),
            energy=np.exp(latency + power),
            energy_std=np.hypot(std, self._energy.std(machines)),
        )

    def to_state(self) -> dict[str, Any]:
        """Return the mode, the rates, the constants and the records that they come from."""
        return {
            "mode": self.mode,
            "rates": {key: value.to_json() for key, value in self._features.rates.items()},
            "columns": self._features.columns.names,
            "examples": self._examples.to_state(),
            "energy_prior": self._energy.to_state(),
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Become the model that `to_state` described."""
        self.mode = str(state["mode"])
        rates = {key: Rates.from_json(value) for key, value in state["rates"].items()}
        self._features = FeatureMatrix(rates)
        self._features.columns = Columns(state["columns"])
        self._examples = Examples.from_state(state["examples"])
        self._energy = EnergyPrior.from_state(state["energy_prior"])
