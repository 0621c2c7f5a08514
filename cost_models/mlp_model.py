"""A learned model of small neural networks, trained with a rank loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from wattune.cost_models.base import Floats
from wattune.cost_models.learned_model import MEMBERS, LearnedModel, Regressor
from wattune.cost_models.matrix import Rows
from wattune.cost_models.networks import Networks, require_torch
from wattune.cost_models.prior import Rates


class MLPModel(LearnedModel):
    """Corrects the prior by an ensemble of networks; the classifier of failures stays trees."""

    name: ClassVar[str] = "mlp"
    # A training takes most of a second whatever the number of records.
    worth_retraining: ClassVar[float] = 1.1

    def __init__(
        self,
        mode: str = "cold",
        rates: Mapping[str, Rates] | None = None,
        seed: int = 0,
        efficacy: str = "none",
    ) -> None:
        """Do as `LearnedModel`; raises `MissingDependencyError` where torch is not installed."""
        require_torch()
        super().__init__(mode, rates, seed, efficacy)

    def _fit(
        self, matrix: Rows, labels: Floats, weights: Floats, groups: Sequence[str]
    ) -> Regressor:
        """Fit networks, which rank the candidates of each group."""
        return Networks.fit(matrix, labels, weights, groups, MEMBERS, self.seed)

    def _regressor(self, state: Mapping[str, Any]) -> Regressor:
        """Build networks."""
        return Networks.from_state(state)
