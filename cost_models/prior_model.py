"""The prior as a model: what physics alone says. A learned one must beat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wattune.cost_models.base import CostModel, Prediction
from wattune.cost_models.matrix import FeatureMatrix
from wattune.cost_models.prior import Rates
from wattune.schedules.candidate import Candidate, Record

# A roofline is seldom right within less than a factor of two.
PRIOR_STD = 0.7


class PriorModel(CostModel):
    """Predicts the roofline's time and learns nothing."""

    name: ClassVar[str] = "prior"

    def __init__(self, mode: str = "cold", rates: Mapping[str, Rates] | None = None) -> None:
        """Predict for this mode; ``rates`` by `Target.key` replace the guessed ones."""
        self.mode = mode
        self._matrix = FeatureMatrix(rates)

    def update(self, records: Sequence[Record]) -> None:
        """Learn nothing."""

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Return the roofline's times."""
        count = len(candidates)
        matrix = self._matrix.rows(candidates, self.mode)
        return Prediction(
            latency=np.exp(self._matrix.log_prior(matrix)),
            latency_std=np.full(count, PRIOR_STD),
            valid=np.ones(count),
        )

    def to_state(self) -> dict[str, Any]:
        """Return the mode and the rates."""
        rates = {key: value.to_json() for key, value in self._matrix.rates.items()}
        return {"mode": self.mode, "rates": rates}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take over the mode and the rates."""
        self.mode = str(state["mode"])
        rates = {key: Rates.from_json(value) for key, value in state["rates"].items()}
        self._matrix = FeatureMatrix(rates)
