"""A template without a compiler and a runner without a machine: latency is a function of knobs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from wattune.ops import TernaryGemm
from wattune.schedules import template as registry
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    FailureKind,
    Measurement,
    Provenance,
    Record,
)
from wattune.schedules.host import fingerprint
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

TARGET = Target.native(threads=1)
SMALL = TernaryGemm(1, 64, 64)
# When records are made: time passes for all fake runners alike.
CLOCK = itertools.count(1.0)


class FakeTemplate(Template):
    """Two layout knobs, three others, one constraint: 4 * 2 * (4 * 4 - 1) * 2 = 240 points."""

    operator = "ternary_gemm"

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def applies(self, problem: Any, target: Target) -> bool:
        return True

    def space(self, problem: Any, target: Target) -> Space:
        knobs = (
            Knob("groups", (1, 2, 4, 8), 4, layout=True),
            Knob("order", ("row", "column"), "row", layout=True),
            Knob("unroll", (1, 2, 4, 8), 1),
            Knob("block", (1, 2, 4, 8), 1),
            Knob("stream", (False, True), False),
        )
        rule = Constraint(
            "unroll * block must be < 64", lambda v: int(v["unroll"]) * int(v["block"]) < 64
        )
        return Space(self.name, knobs, (rule,))

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        return Layout.make("fake", groups=values["groups"], order=values["order"])

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        return {}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        raise NotImplementedError

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        raise NotImplementedError

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        # By the rates that are guessed for one thread this takes a millisecond a token.
        return Counts({"memory": 1e7 * problem.tokens}, {}, parallelism=8)

    def source_hash(self) -> str:
        return "fake-source"


TEMPLATES = (FakeTemplate("fast"), FakeTemplate("slow"))


@pytest.fixture
def fake_templates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the fake templates the only ones."""
    monkeypatch.setitem(registry._MODULES, "cpu", (__name__,))
    registry._templates.cache_clear()
    yield
    registry._templates.cache_clear()


def smooth(candidate: Candidate) -> float:
    """Return a latency with one optimum: fast, groups 8, column, unroll 4, block 2, stream."""
    v = candidate.schedule.values
    steps = (
        abs(math.log2(int(v["groups"])) - 3)
        + abs(math.log2(int(v["unroll"])) - 2)
        + abs(math.log2(int(v["block"])) - 1)
        + (v["order"] == "row")
        + (v["stream"] is False)
    )
    slower = 4.0 if candidate.schedule.template == "slow" else 1.0
    return float(candidate.problem.sizes["tokens"] * slower * 1e-3 * 1.1**steps)


def best_of_all(candidate: Candidate) -> bool:
    """Say whether a candidate is the optimum of `smooth`."""
    return smooth(candidate) == pytest.approx(1e-3 * candidate.problem.sizes["tokens"])


def nothing_fails(candidate: Candidate) -> FailureKind | None:
    return None


@dataclass
class FakeRunner:
    """Yields a record for each candidate and remembers which it was asked for."""

    latency: Callable[[Candidate], float] = smooth
    failure: Callable[[Candidate], FailureKind | None] = nothing_fails
    joules: Callable[[Candidate], float] | None = None
    mode: str = "cold"
    asked: list[Candidate] = field(default_factory=list)
    created: Iterator[float] = CLOCK

    @property
    def energy_source(self) -> str:
        return "none" if self.joules is None else "rapl"

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        for candidate in candidates:
            self.asked.append(candidate)
            yield self.record(candidate)

    def close(self) -> None:
        pass

    def record(self, candidate: Candidate) -> Record:
        failure = self.failure(candidate)
        measurement = None
        if failure is None:
            joules = self.joules and self.joules(candidate)
            seconds = self.latency(candidate)
            measurement = Measurement((seconds, seconds, seconds), joules, self.energy_source)
        return Record(
            candidate,
            Conditions(self.mode),
            Provenance("fake-source", fingerprint(TARGET), {}, next(self.created)),
            measurement,
            failure,
            message="it broke" if failure else "",
        )
