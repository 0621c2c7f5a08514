"""Cost models: what a candidate will cost, from its counts, knobs, problem and target."""

from __future__ import annotations

from wattune.cost_models.base import CostModel, Prediction, cost_model

__all__ = ["CostModel", "Prediction", "cost_model"]
