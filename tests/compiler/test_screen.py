"""Building more than is measured: facts that knobs do not tell choose, where building is cheap."""

from __future__ import annotations

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
from wattune.schedules.candidate import Candidate, FailureKind, Record

pytestmark = pytest.mark.usefixtures("fake_templates")


def hidden(candidate: Candidate) -> float:
    """Return what no knob tells: noise of the candidate's name, the same for all runs."""
    seed = [*candidate.key.encode()]
    return float(np.random.default_rng(seed).integers(20, 200))


def facts_of(candidate: Candidate) -> dict[str, float]:
    return {"k.threads": 128.0, "k.registers": hidden(candidate)}


def by_registers(candidate: Candidate) -> float:
    return 1e-5 * hidden(candidate)


@dataclass
class Building(FakeRunner):
    """Knows the facts of what it builds, which cost no measurement."""

    surplus: int = 2
    built: list[Candidate] = field(default_factory=list)
    broken: frozenset[Candidate] = frozenset()

    def facts(self, candidates: Sequence[Candidate]) -> Mapping[Candidate, Mapping[str, float]]:
        self.built += candidates
        return {c: facts_of(c) for c in candidates if c not in self.broken}

    def record(self, candidate: Candidate) -> Record:
        return replace(super().record(candidate), facts=facts_of(candidate))


def tuned(path: Path, runner: FakeRunner, trials: int = 60) -> list[Candidate]:
    """Return what a tune measures, each once, in order."""
    tune([SMALL], TARGET, path, trials, runner=runner)
    return list(dict.fromkeys(runner.asked))


def test_facts_choose_what_is_measured(tmp_path: Path) -> None:
    """Knobs say nothing here, so what is found without facts is luck."""
    screened, plain = Building(by_registers), Building(by_registers, surplus=1)
    with_facts = tuned(tmp_path / "facts.sqlite", screened)
    without = tuned(tmp_path / "plain.sqlite", plain)
    assert len(with_facts) == len(without) == 60
    assert not plain.built and len(screened.built) > 60
    late = slice(20, None)
    means = [np.mean([hidden(c) for c in found[late]]) for found in (with_facts, without)]
    assert means[0] < 0.8 * means[1]


def test_defaults_are_measured_and_what_does_not_build_is_not(tmp_path: Path) -> None:
    task = Task(SMALL, TARGET)
    every = list(task.enumerate())
    broken = frozenset(c for c in every if hidden(c) > 150 and c not in task.defaults())

    def failure(candidate: Candidate) -> FailureKind | None:
        return "build_error" if candidate in broken else None

    runner = Building(by_registers, failure, broken=broken)
    found = tuned(tmp_path / "tuned.sqlite", runner)
    assert set(task.defaults()) <= set(found)
    share = sum(candidate in broken for candidate in found[20:]) / len(found[20:])
    assert share < 0.5 * len(broken) / len(every)


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
