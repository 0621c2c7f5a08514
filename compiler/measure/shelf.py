"""A shelf of built candidates: what is measured again, or later, is not built again."""

from __future__ import annotations

from wattune.compiler.measure.builder import BuildResult
from wattune.schedules.candidate import Candidate


class Shelf:
    """Keeps the newest ``room`` build results; the libraries of others are deleted."""

    def __init__(self, room: int) -> None:
        """Start empty; with no room nothing is kept."""
        self._room = room
        self._kept: dict[Candidate, BuildResult] = {}

    def get(self, candidate: Candidate) -> BuildResult | None:
        """Return a candidate's build, which stays; None where it is not here."""
        return self._kept.get(candidate)

    def put(self, result: BuildResult) -> None:
        """Keep a build as the newest one, and delete the oldest one if there is no room for it."""
        kept = self._kept
        old = kept.pop(result.candidate, None)
        if old is not None and old.path != result.path:
            _delete(old)
        kept[result.candidate] = result
        while len(kept) > self._room:
            _delete(kept.pop(next(iter(kept))))


def _delete(result: BuildResult) -> None:
    if result.path is not None:
        result.path.unlink(missing_ok=True)
