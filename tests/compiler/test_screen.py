"""Building more than is measured: facts that knobs do not tell choose, where building is cheap."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.measure.builder import BuildResult
from wattune.compiler.measure.shelf import Shelf
from wattune.compiler.search.task import Task
from wattune.compiler.tuner import tune
from wattune.schedules.candidate import Candidate, Record

pytestmark = pytest.mark.usefixtures("fake_templates")


# Each a world of its own: what holds on average need not hold in one.
WORLDS = range(4)


def hidden(candidate: Candidate, world: int) -> float:
    """Return what no knob tells: noise of the schedule's name, the same on all machines."""
    name = zlib.crc32(repr(candidate.schedule).encode())
    return float(np.random.default_rng([world, name]).integers(20, 200))


@dataclass
class Building(FakeRunner):
    """Knows the facts of what it builds, which cost no measurement and decide the latency."""

    surplus: int = 2
    world: int = 0
    built: list[Candidate] = field(default_factory=list)
    broken: frozenset[Candidate] = frozenset()

    def __post_init__(self) -> None:
        self.latency = lambda candidate: 1e-5 * hidden(candidate, self.world)
        self.failure = lambda candidate: "build_error" if candidate in self.broken else None

    def facts(self, candidates: Sequence[Candidate]) -> Mapping[Candidate, Mapping[str, float]]:
        self.built += candidates
        return {c: self.facts_of(c) for c in candidates if c not in self.broken}

    def facts_of(self, candidate: Candidate) -> dict[str, float]:
        return {"k.threads": 128.0, "k.registers": hidden(candidate, self.world)}

    def record(self, candidate: Candidate) -> Record:
        return replace(super().record(candidate), facts=self.facts_of(candidate))


def tuned(path: Path, runner: FakeRunner, trials: int = 60) -> list[Candidate]:
    """Return what a tune measures, each once, in order."""
    tune([SMALL], TARGET, path, trials, runner=runner)
    return list(dict.fromkeys(runner.asked))


def test_facts_choose_what_is_measured(tmp_path: Path) -> None:
    """Knobs say nothing here, so what is found without facts is luck."""
    ratios = []
    for world in WORLDS:
        screened, plain = Building(world=world), Building(surplus=1, world=world)
        with_facts = tuned(tmp_path / f"facts{world}.sqlite", screened)
        without = tuned(tmp_path / f"plain{world}.sqlite", plain)
        assert len(with_facts) == len(without) == 60
        assert not plain.built and len(screened.built) > 60
        late = slice(20, None)
        means = [np.mean([hidden(c, world) for c in f[late]]) for f in (with_facts, without)]
        ratios.append(means[0] / means[1])
    assert np.mean(ratios) < 0.9, ratios


def test_defaults_are_measured_and_what_does_not_build_is_not(tmp_path: Path) -> None:
    task = Task(SMALL, TARGET)
    every = list(task.enumerate())
    shares = []
    for world in WORLDS:
        slow = frozenset(c for c in every if hidden(c, world) > 150)
        broken = slow - set(task.defaults())
        runner = Building(world=world, broken=broken)
        found = tuned(tmp_path / f"tuned{world}.sqlite", runner)
        assert set(task.defaults()) <= set(found)
        measured = sum(candidate in broken for candidate in found[20:]) / len(found[20:])
        shares.append(measured / (len(broken) / len(every)))
    # Two are built for each that is measured: both fail 0.27 times 0.27 of the time.
    assert np.mean(shares) < 0.6, shares


def test_a_shelf_keeps_the_newest(tmp_path: Path) -> None:
    candidates = list(Task(SMALL, TARGET).enumerate())[:3]
    paths = [tmp_path / f"{i}.so" for i in range(3)]
    shelf = Shelf(2)
    for candidate, path in zip(candidates, paths, strict=True):
        path.touch()
        shelf.put(BuildResult(candidate, path))
    assert shelf.get(candidates[0]) is None and not paths[0].exists()
    kept = shelf.get(candidates[1])
    assert kept is not None and kept.path == paths[1] and paths[1].exists()
    # Measured again it is the newest.
    shelf.put(kept)
    shelf.put(BuildResult(candidates[0], None, "build_error"))
    assert not paths[2].exists() and paths[1].exists()
    Shelf(0).put(kept)
    assert not paths[1].exists()
