"""The default learned model: gradient-boosted trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from wattune.cost_models.base import Floats
from wattune.cost_models.boosting import REGRESSION, Trees
from wattune.cost_models.learned_model import MEMBERS, LearnedModel, Regressor
from wattune.cost_models.matrix import Rows


class XGBoostModel(LearnedModel):
    """Corrects the prior by an ensemble of boosted trees."""

    name: ClassVar[str] = "xgboost"
    # Below 2 % more records it would change nothing, unless the others are those of other tasks.
    worth_retraining: ClassVar[float] = 1.02
    most_news: ClassVar[float] = 8

    def _fit(
        self, matrix: Rows, labels: Floats, weights: Floats, groups: Sequence[str]
    ) -> Regressor:
        """Fit trees; they need no groups."""
        return Trees.fit(REGRESSION, matrix, labels, weights, MEMBERS, self.seed)

    def _regressor(self, state: Mapping[str, Any]) -> Regressor:
        """Build trees."""
        return Trees.from_state(state)
