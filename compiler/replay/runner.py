"""A runner that answers from recorded data instead of measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wattune.compiler.replay.recording import Recording
from wattune.schedules.candidate import Candidate, Record


class ReplayRunner:
    """Yields what a recording holds of each candidate, failures included."""

    def __init__(self, recording: Recording) -> None:
        """Answer from this recording."""
        self._recording = recording

    @property
    def energy_source(self) -> str:
        """Name what measured the energy; ``none`` where it was not."""
        return self._recording.energy_source

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield each candidate's record; `ScheduleError` for one that is not in the table."""
        return map(self._recording.record, candidates)

    def close(self) -> None:
        """There is nothing to give back."""
