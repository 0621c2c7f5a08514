"""A made-up template whose latency, power and failures are known functions of its knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from wattune.ops import TernaryGemm
from wattune.schedules import template
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    Measurement,
    Provenance,
    Record,
    Schedule,
)
from wattune.schedules.space import Knob, Space, Value, powers_of_two
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

SMALL = TernaryGemm(tokens=1, out_features=1024, in_features=1024)
LARGE = TernaryGemm(tokens=1, out_features=4096, in_features=6912)
TARGET = Target(kind="cpu", arch="x86_64", cores=2, threads=2)


class MadeUp(Template):
    """Its counts tell a part of the truth: bytes and registers, but no penalties."""

    name = "made_up"
    operator = "ternary_gemm"

    def applies(self, problem: Any, target: Target) -> bool:
        return target.kind == "cpu"

    def space(self, problem: Any, target: Target) -> Space:
        knobs = (
            Knob("block", powers_of_two(1, 16), 4),
            Knob("unroll", powers_of_two(1, 16), 2),
            Knob("order", ("row", "column", "tiled"), "row"),
            Knob("prefetch", (0, 256, 1024, 4096), 0),
            Knob("grain", powers_of_two(1, 64), 1),
            Knob("stream", (False, True), False),
        )
        return Space(self.name, knobs)

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        return Layout("i2")

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        return {}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        raise AssertionError("nothing is built here")

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        raise AssertionError("nothing is packed here")

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        weight = problem.out_features * problem.in_features / 4
        block, unroll = int(values["block"]), int(values["unroll"])
        return Counts(
            bytes={"memory": weight, "l1": weight * (1 + 4 / block)},
            operations={"dot": weight / 16},
            tiles={"rows": problem.out_features / block},
            parallelism=problem.out_features / block / int(values["grain"]),
            registers=block * unroll / 4,
            code=float(block * unroll),
        )


def latency_of(problem: TernaryGemm, values: Mapping[str, Value]) -> float:
    """Return the true seconds: a product of penalties, some of which depend on each other."""
    block, unroll, order = int(values["block"]), int(values["unroll"]), values["order"]
    seconds = problem.out_features * problem.in_features / 4 / 11e9
    seconds *= 1 + 1.5 / (block * unroll)
    if block * unroll > 32:
        seconds *= 1 + 0.6 * math.log2(block * unroll / 32)
    seconds *= {"row": 1.0, "column": 0.8 if block >= 8 else 1.6, "tiled": 1.2}[str(order)]
    seconds *= 1 + 0.12 * abs(math.log2((1 + int(values["prefetch"])) / 1025)) / 2
    tasks = problem.out_features / block / int(values["grain"])
    seconds *= math.ceil(tasks / 2) * 2 / tasks
    if values["stream"] and order == "row":
        seconds *= 0.85
    return seconds + 3e-6 + 2e-8 * tasks


def power_of(values: Mapping[str, Value]) -> float:
    """Return the true mean power in watts."""
    return 40 + 25 * bool(values["stream"]) + 6 * math.log2(int(values["unroll"]))


def fails(values: Mapping[str, Value]) -> bool:
    """Say which candidates crash."""
    return values["order"] == "column" and int(values["block"]) * int(values["unroll"]) >= 64


class World:
    """Draws candidates and measures them, one per cent of noise included."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.template = MadeUp()
        self.clock = 0.0

    def candidates(self, count: int, problem: TernaryGemm = SMALL) -> list[Candidate]:
        """Draw distinct candidates."""
        space = self.template.space(problem, TARGET)
        found: dict[Candidate, None] = {}
        while len(found) < count:
            values = space.sample(self.rng)
            assert values is not None
            found[Candidate(problem, TARGET, Schedule.make(self.template.name, values))] = None
        return list(found)

    def record(self, candidate: Candidate, energy: bool = False, failing: bool = False) -> Record:
        """Measure a candidate; ``failing`` lets those crash that should."""
        assert isinstance(candidate.problem, TernaryGemm)
        values = candidate.schedule.values
        failed = failing and fails(values)
        seconds = latency_of(candidate.problem, values) * float(np.exp(self.rng.normal(0, 0.01)))
        joules = seconds * power_of(values) if energy else None
        self.clock += 1.0
        return Record(
            candidate=candidate,
            conditions=Conditions(threads=2),
            provenance=Provenance("source", "machine", {}, self.clock),
            measurement=None
            if failed
            else Measurement((seconds,), joules, "rapl" if energy else "none"),
            failure="crash" if failed else None,
        )

    def records(
        self,
        count: int,
        problem: TernaryGemm = SMALL,
        energy: bool = False,
        failing: bool = False,
    ) -> list[Record]:
        """Draw and measure candidates."""
        return [self.record(c, energy, failing) for c in self.candidates(count, problem)]


def lone_world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world in which the made-up template is the only one."""
    made = World()
    monkeypatch.setattr(template, "_templates", lambda kind: (made.template,))
    return made
