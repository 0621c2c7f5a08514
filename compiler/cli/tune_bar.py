"""A tune's events on a progress bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wattune.compiler.cli.output import duration
from wattune.compiler.cli.progress import Bar

if TYPE_CHECKING:
    from wattune.compiler.search.events import Event

DEFAULT_TRIALS = 200
_PHASES = {
    "limits": "measuring the machine's limits",
    "search": "searching",
    "layouts": "comparing layouts",
    "confirm": "confirming",
}


class TuneBar:
    """Shows a tune's events on a bar: trials where they end the tune, else the time."""

    def __init__(self, trials: int | None, minutes: float | None) -> None:
        """Choose what the bar counts."""
        self.seconds = None if minutes is None else 60 * minutes
        self.by_time = trials is None and minutes is not None
        total = self.seconds if self.by_time else trials or DEFAULT_TRIALS
        self.bar = Bar("tuning", None if total is None else int(total))
        self.phase = ""
        self.started = time.monotonic()
        self.trials = 0

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from wattune.compiler.search.events import PhaseStarted, RecordArrived, RoundStarted

        text = ""
        if isinstance(event, PhaseStarted):
            self.phase = event.phase
        elif isinstance(event, RoundStarted):
            self.phase, text = event.phase, str(event.problem)
        elif isinstance(event, RecordArrived):
            self.trials = event.trials
            text = str(event.record.candidate.problem)
            if event.best is not None:
                text += f" {duration(event.best.latency)}"
        else:
            return
        what = f"{_PHASES.get(self.phase, self.phase)} {text}".rstrip()
        if self.by_time:
            passed = int(time.monotonic() - self.started)
            self.bar.update(passed, what, f"{self.trials} trials")
        else:
            self.bar.update(self.trials, what)
