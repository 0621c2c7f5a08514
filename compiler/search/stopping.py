"""When a tune stops: trials, minutes, nothing left to try, or nothing left to win."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattune.schedules.candidate import Record

# Rounds in a row that promise less than the noise before a task counts as settled, and records
# before its promises are believed.
PATIENCE, LEAST_RECORDS = 4, 64
# Of no task is the noise believed to be less: drift from one measurement to the next counts too.
LEAST_NOISE = 0.002


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


def noise(records: Sequence[Record]) -> float:
    """Return the standard error of a typical valid record, over its latency."""
    errors = [record.standard_error / record.latency for record in records if record.valid]
    return max(statistics.median(errors), LEAST_NOISE) if errors else LEAST_NOISE


@dataclass
class Settling:
    """Whether a task has anything left to win, by what its strategy expects round by round."""

    quiet: int = 0

    def told(self, gain: float | None, records: Sequence[Record]) -> bool:
        """Count a round whose best proposal was expected to win ``gain``, in ln(cost).

        ``records``: all of the task. Returns whether the task is settled. A round of which the
        strategy cannot say what it expects (None) does not count.
        """
        if gain is None:
            return False
        below = len(records) >= LEAST_RECORDS and gain < noise(records)
        self.quiet = self.quiet + 1 if below else 0
        return self.quiet >= PATIENCE
