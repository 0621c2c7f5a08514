"""Random search: distinct candidates, every template as often as any other."""

from __future__ import annotations

import numpy as np

from wattune.compiler.search.strategy import Strategy
from wattune.schedules.candidate import Candidate


class RandomSearch(Strategy):
    """The control that every other strategy must beat."""

    name = "random"

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Draw new candidates."""
        return self.samples(count, rng)
