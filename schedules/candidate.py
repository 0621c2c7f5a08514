"""Schedules, candidates, measurements and records: the plain data that tuning passes around."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from wattune.errors import RecordError, WattuneError
from wattune.ops import Problem, problem_from_json
from wattune.schedules.space import Value, Values
from wattune.schedules.target import Target

# Runs are close to normal: the standard error of their median is this many times that of their
# mean, and half the spread of their middle half is this many standard deviations.
_MEDIAN_ERROR = 1.2533
_HALF_SPREAD = 0.6745

# The fact of a record whose runs were not kept: the standard error of its latency, in seconds.
STANDARD_ERROR = "standard_error"

FailureKind = Literal["build_error", "timeout", "crash", "wrong_result"]
FAILURE_KINDS: tuple[FailureKind, ...] = ("build_error", "timeout", "crash", "wrong_result")


def canonical(data: Any) -> str:
    """Return one line of JSON with sorted keys: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Schedule:
    """One point of a template's space."""

    template: str
    knobs: tuple[tuple[str, Value], ...]

    @classmethod
    def make(cls, template: str, values: Mapping[str, Value]) -> Self:
        """Build a schedule from knob values in any order."""
        return cls(template, tuple(sorted(values.items())))

    @property
    def values(self) -> Values:
        """Return the knob values by name."""
        return dict(self.knobs)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"template": self.template, "knobs": self.values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a schedule from `to_json`'s data."""
        return cls.make(data["template"], data["knobs"])


@dataclass(frozen=True)
class Candidate:
    """A schedule for a problem on a target: what is built and measured."""

    problem: Problem
    target: Target
    schedule: Schedule

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "problem": self.problem.to_json(),
            "target": self.target.to_json(),
            "schedule": self.schedule.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a candidate from `to_json`'s data."""
        return cls(
            problem_from_json(data["problem"]),
            Target.from_json(data["target"]),
            Schedule.from_json(data["schedule"]),
        )

    @property
    def key(self) -> str:
        """Return a short digest: equal candidates have equal keys."""
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Conditions:
    """How a candidate was measured: ``mode`` cold or hot, threads, page size, clocks if known."""

    mode: str = "cold"
    threads: int = 1
    huge_pages: bool = True
    clock_mhz: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Latency of each run in seconds; energy per run in joules or None, and what measured it."""

    seconds: tuple[float, ...]
    joules: float | None = None
    energy_source: str = "none"

    @property
    def latency(self) -> float:
        """Return the median run, in seconds."""
        ordered = sorted(self.seconds)
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return (ordered[middle - 1] + ordered[middle]) / 2

    @property
    def best(self) -> float:
        """Return the fastest run, in seconds."""
        return min(self.seconds)

    @property
    def noise(self) -> float:
        """Return half the spread of the middle half of the runs over the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
        return (high - low) / 2 / self.latency

    @property
    def standard_error(self) -> float:
        """Return the standard error of the median run, over the median; 0 for a single run.

        It comes from the middle half of the runs: a few disturbed ones do not inflate it. Where
        quantiles of more runs were kept it is that of as many runs as were kept: larger, as the
        drift between measurements, which no run shows, asks for.
        """
        return _MEDIAN_ERROR * self.noise / _HALF_SPREAD / math.sqrt(len(self.seconds))


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from: template source hash, versions, device, time, reasons."""

    source_hash: str
    fingerprint: str
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    created: float = 0.0


@dataclass(frozen=True)
class Record:
    """A candidate's measurement, or its failure (exactly one of the two)."""

    candidate: Candidate
    conditions: Conditions
    provenance: Provenance
    measurement: Measurement | None = None
    failure: FailureKind | None = None
    message: str = ""
    facts: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Refuse a record that is neither or both."""
        if (self.measurement is None) == (self.failure is None):
            raise RecordError("a record holds either a measurement or a failure")
        if self.failure is not None and self.failure not in FAILURE_KINDS:
            raise RecordError(f"failure is {self.failure!r}; allowed: {', '.join(FAILURE_KINDS)}")

    @property
    def valid(self) -> bool:
        """Say whether the candidate ran and was right."""
        return self.measurement is not None

    @property
    def latency(self) -> float:
        """Return the median latency in seconds; infinite for a failure."""
        return self.measurement.latency if self.measurement else float("inf")

    @property
    def standard_error(self) -> float:
        """Return the standard error of the latency in seconds: as recorded, or of the runs."""
        known = self.facts.get(STANDARD_ERROR)
        if known is not None or self.measurement is None:
            return known or 0.0
        return self.measurement.standard_error * self.latency

    @property
    def joules(self) -> float | None:
        """Return the measured energy per run, if any."""
        return self.measurement.joules if self.measurement else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, one line of a record file."""
        measurement = self.measurement
        return {
            **self.candidate.to_json(),
            "conditions": dataclasses.asdict(self.conditions),
            "provenance": dataclasses.asdict(self.provenance),
            "measurement": None
            if measurement is None
            else {**dataclasses.asdict(measurement), "seconds": list(measurement.seconds)},
            "failure": self.failure,
            "message": self.message,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a record from `to_json`'s data; anything else is a `RecordError`."""
        try:
            measured = data["measurement"]
            return cls(
                candidate=Candidate.from_json(data),
                conditions=Conditions(**data["conditions"]),
                provenance=Provenance(**data["provenance"]),
                measurement=None
                if measured is None
                else Measurement(**{**measured, "seconds": tuple(measured["seconds"])}),
                failure=data["failure"],
                message=data["message"],
                facts=dict(data["facts"]),
            )
        except RecordError:
            raise
        except (KeyError, TypeError, AttributeError, WattuneError) as error:
            raise RecordError(f"not a record: {type(error).__name__}: {error}") from error
