"""Bayesian search: its encoding, and what it must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, best_of_all, smooth
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.search import bayesian
from wattune.compiler.search.bayesian import FIRST
from wattune.compiler.search.encoding import Encoding
from wattune.compiler.search.strategy import strategy
from wattune.compiler.search.task import Task
from wattune.cost_models.base import Prediction
from wattune.cost_models.prior_model import PriorModel
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
def test_it_needs_two_fifths_of_the_trials_of_evolution_without_a_model(batch: int) -> None:
    mean = {
        name: np.mean([trials_to_optimum(name, seed, FakeRunner(), batch) for seed in range(10)])
        for name in ("plain_evolutionary", "bayesian")
    }
    assert mean["bayesian"] < mean["plain_evolutionary"] / (2.5 if batch == 1 else 1.5), mean


def test_a_round_at_random_says_nothing_of_what_is_left_to_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = FakeRunner()
    found = strategy("bayesian", Task(SMALL, TARGET), None, 0)
    assert found.gain is None
    found.tell(list(runner.run(found.ask(FIRST + 2))))
    found.ask(1)
    assert found.gain is not None
    monkeypatch.setattr(bayesian, "EXPLORE", 1.0)
    found.ask(1)
    assert found.gain is None


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


def test_what_physics_expects_is_a_column_where_it_tells_points_apart() -> None:
    task = Task(SMALL, TARGET)
    points = list(task.enumerate())
    plain = Encoding(task)
    flat = Encoding(task, lambda candidates: np.zeros(len(candidates)))
    assert not flat.prior.trends and flat.rows(points).shape == plain.rows(points).shape
    encoding = Encoding(task, lambda found: np.log([smooth(c) for c in found]))
    rows = encoding.rows(points)
    assert encoding.prior.trends == {len(encoding.prior.weights) - 1}
    np.testing.assert_array_equal(rows[:, :-1], plain.rows(points))
    assert abs(rows[:, -1].mean()) < 0.2 and rows[:, -1].std() == pytest.approx(1, rel=0.1)


@dataclass
class Oracle(PriorModel):
    """Expects of each point what it costs, raised to a power: right, or just the other way."""

    power: float

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        latency = np.array([smooth(candidate) for candidate in candidates]) ** self.power
        return Prediction(latency, np.ones(len(latency)), np.ones(len(latency)))


def test_a_model_that_is_right_helps_and_one_that_misleads_is_noticed() -> None:
    def trials(model: PriorModel | None, seed: int) -> int:
        found, runner = strategy("bayesian", Task(SMALL, TARGET), model, seed), FakeRunner()
        while not any(best_of_all(candidate) for candidate in runner.asked):
            found.tell(list(runner.run(found.ask(1))))
        return len(runner.asked)

    mean = {
        power: np.mean([trials(Oracle(power) if power else None, seed) for seed in range(3)])
        for power in (None, 0.5, -0.5)
    }
    assert mean[0.5] <= FIRST + 3 and mean[0.5] <= mean[None]
    assert mean[-0.5] <= FIRST + 3
