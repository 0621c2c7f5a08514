"""Trials go where the model's time goes and where there is still something to win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from tests.compiler.fakes import TARGET, FakeRunner
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.search.scheduler import Scheduler
from wattune.compiler.search.stopping import (
    LEAST_NOISE,
    LEAST_RECORDS,
    PATIENCE,
    Budget,
    Phase,
    Settling,
    noise,
)
from wattune.compiler.search.task import Task
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import STANDARD_ERROR, Record

pytestmark = pytest.mark.usefixtures("fake_templates")


def tasks_of(*factors: tuple[float, int]) -> list[Task]:
    """Return a task for each (weight, multiplicity)."""
    return [
        Task(TernaryGemm(1, 64 * (at + 1), 64), TARGET, None, weight, multiplicity)
        for at, (weight, multiplicity) in enumerate(factors)
    ]


def simulate(
    scheduler: Scheduler,
    tasks: Sequence[Task],
    curves: Sequence[Callable[[int], float]],
    rounds: int,
) -> Counter[int]:
    """Run rounds in which a task's nth record has the latency that its curve gives."""
    turns: Counter[int] = Counter()
    for _ in range(rounds):
        at = scheduler.next()
        assert at is not None
        seconds = curves[at](turns[at])
        record = FakeRunner(latency=lambda _, s=seconds: s).record(tasks[at].defaults()[0])  # type: ignore[misc]
        scheduler.told(at, [record])
        turns[at] += 1
    return turns


def test_first_every_task_gets_a_round_in_order() -> None:
    tasks = tasks_of((1, 1), (1, 100), (0, 1))
    scheduler, order = Scheduler(tasks), []
    for _ in tasks:
        at = scheduler.next()
        assert at is not None
        order.append(at)
        scheduler.told(at, [FakeRunner().record(tasks[at].defaults()[0])])
    assert order == [0, 1, 2]


def test_a_task_with_most_of_the_time_that_improves_gets_most_rounds() -> None:
    tasks = tasks_of((1, 1), (1, 90), (1, 9))
    curves = [lambda n: 1.0, lambda n: 0.95**n, lambda n: 1.0]
    turns = simulate(Scheduler(tasks), tasks, curves, 40)
    assert turns[1] > 30 and min(turns.values()) >= 1, turns


def test_a_task_that_has_gone_stale_gives_way_but_comes_back() -> None:
    tasks = tasks_of((1, 9), (1, 1))
    turns = simulate(Scheduler(tasks), tasks, [lambda n: 1.0, lambda n: 0.97**n], 40)
    assert turns[1] > turns[0] >= 5, turns


def test_a_task_at_its_bound_has_less_to_win() -> None:
    tasks = tasks_of((1, 1), (1, 1))
    turns = simulate(Scheduler(tasks, [0.99, 0.1]), tasks, [lambda n: 1.0] * 2, 40)
    assert turns[1] > 2 * turns[0], turns


def test_a_task_in_which_nothing_works_goes_first_but_not_for_ever() -> None:
    tasks = tasks_of((1, 1), (1, 100))
    turns = simulate(Scheduler(tasks), tasks, [lambda n: float("inf"), lambda n: 1.0], 20)
    assert 2 <= turns[0] <= 4, turns


def test_a_task_without_anything_left_is_left_alone() -> None:
    tasks = tasks_of((1, 1), (1, 1))
    scheduler = Scheduler(tasks)
    scheduler.told(0, [])
    assert scheduler.next() == 1
    scheduler.told(1, [])
    assert scheduler.next() is None and scheduler.over == "exhausted"


def test_a_settled_task_gets_no_more_rounds() -> None:
    tasks = tasks_of((1, 1), (1, 1))
    scheduler, record = Scheduler(tasks), FakeRunner().record(tasks[0].defaults()[0])
    scheduler.told(0, [record], settled=True)
    assert scheduler.next() == 1
    scheduler.told(1, [])
    assert scheduler.next() is None and scheduler.over == "settled"


def test_a_task_settles_when_several_rounds_in_a_row_promise_less_than_the_noise() -> None:
    record = FakeRunner().record(tasks_of((1, 1))[0].defaults()[0])
    noisy = replace(record, facts={STANDARD_ERROR: 0.01 * record.latency})
    many = [noisy] * LEAST_RECORDS
    assert noise(many) == pytest.approx(0.01) and noise([record]) == LEAST_NOISE == noise([])

    def settles(gains: Sequence[float | None], records: Sequence[Record] = many) -> bool:
        found = Settling()
        return [found.told(gain, records) for gain in gains][-1]

    assert settles([0.5, *[0.009] * PATIENCE])
    assert not settles([*[0.009] * PATIENCE, 0.011])
    assert not settles([*[0.009] * (PATIENCE - 1), 0.011, 0.009])
    assert not settles([0.009] * PATIENCE, many[:-1])
    assert not settles([None] * PATIENCE)
    # A round at random says nothing, neither for nor against.
    assert settles([*[0.009] * (PATIENCE - 1), None, 0.009])
    assert not settles([*[0.009] * (PATIENCE - 1), None])


def test_a_budget_counts_trials_and_time_by_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = Budget(100, 60.0, used=70)
    phase = Phase("search", trials=0.75, time=0.5)
    assert budget.left(phase.trials) == 5 and not phase.over(budget)
    budget.used = 75
    assert phase.over(budget) and not phase.late(budget) and budget.left() == 25
    now[0] = 30.0
    assert phase.late(budget) and budget.time_left() == 30 and budget.reason() == "minutes"
    budget.used = 100
    assert budget.reason() == "trials"
