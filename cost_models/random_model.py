"""The control: a model that knows nothing. A real one must beat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wattune.cost_models.base import CostModel, Prediction
from wattune.schedules.candidate import Candidate, Record


class RandomModel(CostModel):
    """Draws a latency for every candidate: always the same one for the same seed."""

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        """Keep the seed."""
        self.seed = seed

    def update(self, records: Sequence[Record]) -> None:
        """Learn nothing."""

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Draw latencies between 1 us and 1 ms, all equally (un)certain."""
        draws = [
            np.random.default_rng([self.seed, int(candidate.key, 16)]).random()
            for candidate in candidates
        ]
        count = len(candidates)
        return Prediction(
            latency=1e-6 * 1e3 ** np.array(draws, dtype=np.float64),
            latency_std=np.ones(count),
            valid=np.ones(count),
        )

    def to_state(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take over the seed."""
        self.seed = int(state["seed"])
