"""What a tune found, as plain data: per problem and over the whole model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattune.compiler.report_data import PREDICTED
from wattune.compiler.step_time import Calls, ms_per_token
from wattune.ops import Problem
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target


@dataclass(frozen=True)
class ProblemReport:
    """One problem's tune.

    ``default`` and ``best`` are the figures to compare: of the same interleaved re-measurement
    where there was one. ``selected`` is what `compile` takes, in the layout that the problem's
    group agreed on; ``predicted_seconds`` is what the model makes of it by now. ``curve`` holds
    (trial, best latency in seconds) wherever the best improved, ``predictions`` (predicted,
    measured) seconds, predicted before the model (without one, physics) saw the measurement.
    A step of the problem's bucket makes ``tokens`` tokens.
    """

    problem: Problem
    multiplicity: int
    weight: float
    tokens: int
    trials: int
    resumed: int
    default: Record | None
    best: Record | None
    selected: Record | None
    predicted_seconds: float | None
    layout: str
    failures: dict[str, int]
    curve: tuple[tuple[int, float], ...]
    predictions: tuple[tuple[float, float], ...]

    @property
    def speedup(self) -> float | None:
        """Return how many times faster than the default the selected candidate is."""
        if self.default is None or self.selected is None:
            return None
        return self.default.latency / self.selected.latency

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        selected = self.selected
        return {
            "problem": self.problem.to_json(),
            "multiplicity": self.multiplicity,
            "weight": self.weight,
            "tokens": self.tokens,
            "trials": self.trials,
            "resumed": self.resumed,
            "default_seconds": _latency(self.default),
            "best_seconds": _latency(self.best),
            "selected_seconds": _latency(selected),
            "predicted_seconds": self.predicted_seconds,
            "speedup": self.speedup,
            "schedule": selected and selected.candidate.schedule.to_json(),
            "joules": selected and selected.joules,
            "layout": self.layout,
            "failures": self.failures,
            "curve": [list(point) for point in self.curve],
            "predictions": [list(pair) for pair in self.predictions],
        }


@dataclass(frozen=True)
class Total:
    """Milliseconds per token over all layers; None where a problem of the model has no figure."""

    default: float | None
    measured: float | None
    predicted: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"default": self.default, "measured": self.measured, "predicted": self.predicted}


@dataclass(frozen=True)
class TuneReport:
    """A tune: its problems, its total, and how it went.

    ``stopped`` says why it ended: ``trials``, ``minutes``, ``exhausted``, ``settled`` (what was
    left to win was less than the noise) or ``interrupted``.
    ``seconds`` is the whole duration; ``candidates_per_second`` counts building and measuring of
    this tune's new candidates only.
    """

    problems: tuple[ProblemReport, ...]
    target: Target
    fingerprint: str
    objective: str
    strategy: str
    mode: str
    stopped: str
    seconds: float
    candidates_per_second: float

    @property
    def ms_per_token(self) -> Total:
        """Return what a token of the model costs."""
        return Total(
            default=per_token(self.problems, [_latency(p.default) for p in self.problems]),
            measured=per_token(self.problems, [_latency(p.selected) for p in self.problems]),
            predicted=per_token(self.problems, [p.predicted_seconds for p in self.problems]),
        )

    def of(self, problems: Collection[Problem]) -> TuneReport:
        """Return the part of the report that is about these problems."""
        parts = tuple(part for part in self.problems if part.problem in problems)
        return replace(self, problems=parts)

    @property
    def trials(self) -> int:
        """Return the distinct measured candidates, resumed ones included."""
        return sum(part.trials for part in self.problems)

    @property
    def resumed(self) -> int:
        """Return how many of the trials an earlier tune had measured."""
        return sum(part.resumed for part in self.problems)

    @property
    def failures(self) -> dict[str, int]:
        """Return the failed trials by kind."""
        found: dict[str, int] = {}
        for part in self.problems:
            for kind, count in part.failures.items():
                found[kind] = found.get(kind, 0) + count
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "problems": [part.to_json() for part in self.problems],
            "ms_per_token": self.ms_per_token.to_json(),
            "target": self.target.to_json(),
            "fingerprint": self.fingerprint,
            "objective": self.objective,
            "strategy": self.strategy,
            "mode": self.mode,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "candidates_per_second": self.candidates_per_second,
            "trials": self.trials,
            "resumed": self.resumed,
            "failures": self.failures,
        }


class TuneInterrupted(KeyboardInterrupt):
    """Ctrl-C during a tune: everything measured is kept, ``report`` says how far it got."""

    def __init__(self, report: TuneReport) -> None:
        """Keep the report."""
        super().__init__("tuning was interrupted; run it again to go on")
        self.report = report


def failures_by_kind(records: Sequence[Record]) -> dict[str, int]:
    """Count the distinct candidates that failed, by kind."""
    kinds: dict[str, int] = {}
    last = {record.candidate.schedule: record for record in records}
    for record in last.values():
        if record.failure is not None:
            kinds[record.failure] = kinds.get(record.failure, 0) + 1
    return kinds


def best_so_far(records: Sequence[Record]) -> tuple[tuple[int, float], ...]:
    """Return (trial, latency) wherever the least latency improved, and at the last trial."""
    curve: list[tuple[int, float]] = []
    best = float("inf")
    for trial, record in enumerate(records, start=1):
        if record.latency < best:
            best = record.latency
            curve.append((trial, best))
    if curve and curve[-1][0] != len(records):
        curve.append((len(records), best))
    return tuple(curve)


def predictions(records: Sequence[Record]) -> tuple[tuple[float, float], ...]:
    """Return (predicted, measured) seconds of the valid records that carry a prediction."""
    return tuple(
        (r.facts[PREDICTED], r.latency) for r in records if r.valid and PREDICTED in r.facts
    )


def per_token(parts: Sequence[ProblemReport], seconds: Sequence[float | None]) -> float | None:
    """Return milliseconds per token over all layers, from each problem's seconds."""
    return ms_per_token(
        Calls(part.problem, part.multiplicity, part.weight, part.tokens, value)
        for part, value in zip(parts, seconds, strict=True)
    )


def _latency(record: Record | None) -> float | None:
    return None if record is None else record.latency
