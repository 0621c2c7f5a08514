"""Exhaustive search: every candidate, in the order of the knobs' values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from wattune.compiler.search.strategy import Strategy
from wattune.schedules.candidate import Candidate


class Exhaustive(Strategy):
    """Measures the whole space; cut short, it has seen a corner of it only."""

    name = "exhaustive"
    _walk: Iterator[Candidate] | None = None

    def release(self) -> None:
        """Walk again from the start: what was skipped may not have been measured."""
        super().release()
        self._walk = None

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return the next candidates."""
        # One walk for the whole search: what it passed was proposed or known by then.
        self._walk = self._walk or self.task.enumerate()
        return list(islice((c for c in self._walk if self.is_new(c)), count))
