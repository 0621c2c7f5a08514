"""What a learned model remembers of records: one row of numbers each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.boosting import pack_bytes, unpack_bytes
from wattune.cost_models.matrix import FeatureMatrix, Rows
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.target import Target

Floats = NDArray[np.float64]

# A slow candidate still says something: it counts at least this much beside the fastest.
_LEAST_WEIGHT = 0.1


def machine_of(candidate: Candidate) -> str:
    """Name the machine and its threads as far as the target tells."""
    return _machine(candidate.target)


def task_of(candidate: Candidate, mode: str) -> str:
    """Name what shares one scale of latency: all buckets of a problem, a machine, a mode."""
    return _names(candidate.problem, candidate.target, mode)[0]


def group_of(candidate: Candidate, mode: str) -> str:
    """Name the candidates among which the fastest is sought: one bucket, a machine, a mode."""
    return _names(candidate.problem, candidate.target, mode)[1]


# Hundreds of candidates of one problem are predicted at a time, and all have the same names.
@lru_cache(maxsize=1024)
def _names(problem: Problem, target: Target, mode: str) -> tuple[str, str]:
    machine = f"{mode}:{_machine(target)}"
    return f"{machine}:{problem.static_key}", f"{machine}:{problem.key}"


@lru_cache(maxsize=1024)
def _machine(target: Target) -> str:
    return hashlib.sha256(target.key.encode()).hexdigest()[:16]


def record_key(record: Record) -> str:
    """Name a record: the same candidate measured again is another one."""
    text = repr(
        (
            record.candidate.key,
            record.conditions.mode,
            record.provenance.fingerprint,
            record.provenance.source_hash,
            record.provenance.created,
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Examples:
    """Parallel lists, one entry a record; natural logarithms, NaN where nothing was measured.

    ``group``: the records among which the fastest is sought (one bucket); ``task``: those which
    share a scale; ``machine``: those which share a power level; ``noise``: the standard error of
    the latency's logarithm.
    """

    seen: set[str] = field(default_factory=set)
    rows: list[Rows] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def add(self, records: Sequence[Record], features: FeatureMatrix) -> int:
        """Remember what is new and can be described; return how many that were."""
        before = len(self.rows)
        for record in records:
            key = record_key(record)
            if key in self.seen:
                continue
            self.seen.add(key)
            if features.usable(record.candidate):
                features.know(record.candidate, record.facts)
                self._append(record, features)
        return len(self.rows) - before

    def _append(self, record: Record, features: FeatureMatrix) -> None:
        candidate, mode = record.candidate, record.conditions.mode
        self.rows.append(features.row(candidate, mode))
        self.task.append(task_of(candidate, mode))
        self.machine.append(machine_of(candidate))
        self.group.append(group_of(candidate, mode))
        latency, joules = record.latency, record.joules
        self.latency.append(math.log(latency) if record.valid else math.nan)
        known = record.valid and joules is not None and joules > 0
        self.power.append(math.log(joules / latency) if known and joules else math.nan)
        self.noise.append(record.standard_error / latency if record.valid else 0.0)

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""
        width = max((len(row) for row in self.rows), default=0)
        # Rows made early lack late columns; NaN here, and `Columns.stack` fills in what is right.
        matrix = np.full((len(self.rows), width), np.nan, np.float32)
        for line, row in zip(matrix, self.rows, strict=True):
            line[: len(row)] = row
        return {
            "seen": sorted(self.seen),
            "lengths": [len(row) for row in self.rows],
            "width": width,
            "matrix": pack_bytes(matrix.astype("<f4").tobytes()),
            "group": self.group,
            "task": self.task,
            "machine": self.machine,
            "latency": [None if math.isnan(value) else value for value in self.latency],
            "noise": self.noise,
            "power": [None if math.isnan(value) else value for value in self.power],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the examples that `to_state` described."""
        lengths = [int(n) for n in state["lengths"]]
        matrix = np.frombuffer(unpack_bytes(state["matrix"]), "<f4").astype(np.float32)
        matrix = matrix.reshape(len(lengths), int(state["width"]))
        return cls(
            seen=set(state["seen"]),
            rows=[line[:n] for line, n in zip(matrix, lengths, strict=True)],
            group=list(state["group"]),
            task=list(state["task"]),
            machine=list(state["machine"]),
            latency=[math.nan if value is None else float(value) for value in state["latency"]],
            noise=[float(value) for value in state["noise"]],
            power=[math.nan if value is None else float(value) for value in state["power"]],
        )


def speed_weights(latency: Floats, group: Sequence[str]) -> Floats:
    """Return t_best / t within each group (of ln t), at least 0.1: fast candidates count most."""
    best: dict[str, float] = {}
    for name, value in zip(group, latency, strict=True):
        best[name] = min(value, best.get(name, math.inf))
    ratio = np.exp(np.array([best[name] for name in group]) - latency)
    return np.maximum(ratio, _LEAST_WEIGHT)


@dataclass(frozen=True)
class Centres:
    """The level of each task, so that trees learn what differs within one.

    ``levels``: by name; ``counts``: how many values made it; ``common``: that of an unseen task.
    """

    levels: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    common: float = 0.0

    @classmethod
    def fit(cls, values: Floats, weights: Floats, names: Sequence[str]) -> Self:
        """Take weighted means, drawn towards the common one by the weight of one record."""
        members: dict[str, list[int]] = {}
        for at, name in enumerate(names):
            members.setdefault(name, []).append(at)
        means = {n: float(np.average(values[i], weights=weights[i])) for n, i in members.items()}
        common = float(np.mean(list(means.values()))) if means else 0.0
        counts = {name: len(at) for name, at in members.items()}
        levels = {n: (means[n] * counts[n] + common) / (counts[n] + 1) for n in means}
        return cls(levels, counts, common)

    def of(self, names: Sequence[str]) -> Floats:
        """Return each name's level."""
        return np.array([self.levels.get(name, self.common) for name in names], np.float64)

    def std(self, names: Sequence[str], single: float) -> Floats:
        """Return how far each level may be off, where that of an unseen task may by ``single``."""
        return np.array([single / math.sqrt(1 + self.counts.get(n, 0)) for n in names], np.float64)

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""
        return {"levels": self.levels, "counts": self.counts, "common": self.common}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the centres that `to_state` described."""
        return cls(dict(state["levels"]), dict(state["counts"]), float(state["common"]))
