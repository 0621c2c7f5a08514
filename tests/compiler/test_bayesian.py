"""Bayesian search: its encoding, and what it must beat."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, best_of_all
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.search import bayesian
from wattune.compiler.search.encoding import Encoding
from wattune.compiler.search.strategy import strategy
from wattune.compiler.search.task import Task
from wattune.schedules.candidate import Candidate, FailureKind

pytestmark = pytest.mark.usefixtures("fake_templates")


def trials_to_optimum(name: str, seed: int, runner: FakeRunner, batch: int = 1) -> int:
    found = strategy(name, Task(SMALL, TARGET), None, seed)
    count = 0
    while asked := found.ask(batch):
        found.tell(list(runner.run(asked)))
        found.release()
        count += len(asked)
        if any(best_of_all(candidate) for candidate in asked):
            return count
    raise AssertionError("the optimum was never proposed")


def test_rows_tell_all_points_apart_and_templates_have_their_own_columns() -> None:
    task = Task(SMALL, TARGET)
    encoding = Encoding(task)
    rows = encoding.rows(list(task.enumerate()))
    assert len(np.unique(rows, axis=0)) == task.size()
    assert rows.shape[1] == len(encoding.prior.groups) and rows.min() == 0 and rows.max() == 1
    fast, slow = (rows[at] for at in (0, task.size() // 2))
    assert not ((fast != 0) & (slow != 0)).any()


@pytest.mark.parametrize("batch", [1, 8])
def test_it_needs_a_third_of_the_trials_of_evolution_without_a_model(batch: int) -> None:
    mean = {
        name: np.mean([trials_to_optimum(name, seed, FakeRunner(), batch) for seed in range(3)])
        for name in ("plain_evolutionary", "bayesian")
    }
    assert mean["bayesian"] < mean["plain_evolutionary"] / (3 if batch == 1 else 1.5), mean


def fails(candidate: Candidate) -> FailureKind | None:
    return "crash" if candidate.schedule.values["order"] == "row" else None


def test_it_avoids_what_fails() -> None:
    runner = FakeRunner(failure=fails)
    found = strategy("bayesian", Task(SMALL, TARGET), None, 0)
    for _ in range(30):
        found.tell(list(runner.run(found.ask(1))))
    late = runner.asked[15:]
    # By chance it would be half of them.
    assert sum(fails(candidate) is not None for candidate in late) <= len(late) / 4


def test_a_space_too_large_to_be_listed_is_searched_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bayesian, "LISTED", 100)
    assert trials_to_optimum("bayesian", 0, FakeRunner()) < 60
