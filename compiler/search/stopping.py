"""When a tune stops: trials, minutes, or nothing left to try."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Trials and time of a tune.

    ``used`` counts distinct measured candidates, resumed ones included. Phases get shares of the
    whole: what a phase leaves over is there for the next one.
    """

    trials: int
    seconds: float | None = None
    used: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def left(self, share: float = 1.0) -> int:
        """Return the trials until this share of all of them is used."""
        return max(0, int(share * self.trials) - self.used)

    def time_left(self, share: float = 1.0) -> float:
        """Return the seconds until this share of the time is over; infinite without a limit."""
        return float("inf") if self.seconds is None else share * self.seconds - self.elapsed

    def reason(self) -> str:
        """Say in a word why a tune stops that has more to try: ``trials`` or ``minutes``."""
        return "trials" if self.left() == 0 else "minutes"


@dataclass(frozen=True)
class Phase:
    """A part of a tune: it ends when its share of the budget is used."""

    name: str
    trials: float = 1.0
    time: float = 1.0

    def over(self, budget: Budget) -> bool:
        """Say whether the phase has used its share."""
        return budget.left(self.trials) == 0 or self.late(budget)

    def late(self, budget: Budget) -> bool:
        """Say whether the phase's time is up."""
        return budget.time_left(self.time) <= 0
