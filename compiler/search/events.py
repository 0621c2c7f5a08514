"""What a tune tells while it runs: small events for progress bars and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wattune.compiler.search.energy_policy import Decision
from wattune.ops import Problem
from wattune.schedules.candidate import Record


@dataclass(frozen=True)
class PhaseStarted:
    """A part of the tune begins: ``limits``, ``search``, ``layouts`` or ``confirm``."""

    phase: str


@dataclass(frozen=True)
class RoundStarted:
    """So many candidates of a problem are built and measured next."""

    phase: str
    problem: Problem
    candidates: int


@dataclass(frozen=True)
class RecordArrived:
    """A record was committed: trial ``trials`` of ``total``; ``best`` is the problem's best one."""

    phase: str
    record: Record
    trials: int
    total: int
    best: Record | None


@dataclass(frozen=True)
class BestImproved:
    """A record is the best of its problem so far; ``previous`` is None for the first valid one."""

    record: Record
    previous: Record | None


@dataclass(frozen=True)
class EnergyDecided:
    """A round has measured some energies; ``decision`` says which share, and what it taught."""

    problem: Problem
    decision: Decision


Event: TypeAlias = PhaseStarted | RoundStarted | RecordArrived | BestImproved | EnergyDecided


class Progress(Protocol):
    """Is called with every event, between measurements: it may print, it should not compute."""

    def __call__(self, event: Event) -> None:
        """Take an event."""


def silent(event: Event) -> None:
    """Ignore an event."""
