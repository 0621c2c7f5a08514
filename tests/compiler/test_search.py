"""Tasks and strategies under a fake runner; every strategy of the registry keeps the same rules."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from tests.compiler.fakes import (
    SMALL,
    TARGET,
    FakeRunner,
    best_of_all,
    smooth,
)
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.objective import parse_objective
from wattune.compiler.search.strategy import Strategy, strategy, strategy_names
from wattune.compiler.search.task import Task
from wattune.cost_models.base import CostModel, Prediction, cost_model
from wattune.errors import ScheduleError, UnknownNameError
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import Candidate, FailureKind
from wattune.schedules.template import Layout, layout_of

pytestmark = pytest.mark.usefixtures("fake_templates")
SIZE = 2 * 240
INSIDE = Layout.make("fake", groups=1, order="column")


def model_for(name: str) -> CostModel | None:
    return cost_model("xgboost") if name == "evolutionary" else None


def search(found: Strategy, runner: FakeRunner, budget: int, batch: int = 16) -> list[Candidate]:
    """Run ask and tell as a tuner does; return what was measured, in order."""
    measured: list[Candidate] = []
    while len(measured) < budget and (asked := found.ask(min(batch, budget - len(measured)))):
        records = list(runner.run(asked))
        found.tell(records)
        if found.model is not None:
            found.model.update(records)
        measured += asked
    return measured


# --- tasks ---------------------------------------------------------------------------------------


def test_a_task_is_the_union_of_its_templates_spaces() -> None:
    task = Task(SMALL, TARGET)
    everything = list(task.enumerate())
    assert len(set(everything)) == task.size() == SIZE < task.product()
    assert [c.schedule.template for c in task.defaults()] == ["fast", "slow"]
    assert all(task.contains(candidate) for candidate in everything)
    assert not task.contains(next(Task(TernaryGemm(2, 64, 64), TARGET).enumerate()))


def test_within_a_layout_every_operation_stays_within_it() -> None:
    task, rng = Task(SMALL, TARGET, INSIDE), np.random.default_rng(0)
    assert task.size() == SIZE / 8
    start = task.defaults()[0]
    moved = [
        *task.defaults(),
        *task.neighbours(start),
        *task.spread(20, rng),
        *(task.sample(rng) for _ in range(20)),
        *(task.mutate(start, rng) for _ in range(50)),
        *(task.crossover(start, other, rng) for other in task.defaults()),
    ]
    assert {layout_of(c) for c in moved if c} == {INSIDE} and all(
        task.contains(c) for c in moved if c
    )
    with pytest.raises(ScheduleError, match="no template reads layout fake:groups=3"):
        Task(SMALL, TARGET, Layout.make("fake", groups=3, order="row")).defaults()


def test_moves_change_something_and_reach_the_other_template() -> None:
    task, rng = Task(SMALL, TARGET), np.random.default_rng(0)
    start = task.defaults()[0]
    children = [task.mutate(start, rng) for _ in range(200)]
    assert {c.schedule.template for c in children if c} == {"fast", "slow"}
    assert start not in [c for c in children if c and c.schedule.template == "fast"]
    one, other = Task(SMALL, TARGET, INSIDE).defaults()[0], start
    mixed = {task.crossover(one, other, rng) for _ in range(50)}
    assert len(mixed) > 2
    for child in mixed:
        assert child is not None
        parents = [one.schedule.values, other.schedule.values]
        assert all(v in (p[name] for p in parents) for name, v in child.schedule.knobs)


def test_a_spread_covers_every_value_of_every_knob() -> None:
    found = Task(SMALL, TARGET).spread(32, np.random.default_rng(0))
    values = [c.schedule.values for c in found]
    assert {v["groups"] for v in values} == {1, 2, 4, 8}
    counts = [sum(v["groups"] == g for v in values) for g in (1, 2, 4, 8)]
    assert min(counts) >= 6, "random draws alone would leave gaps"


# --- every strategy ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", strategy_names())
class TestEveryStrategy:
    def test_keeps_the_budget_and_never_repeats(self, name: str) -> None:
        runner = FakeRunner()
        measured = search(strategy(name, Task(SMALL, TARGET), model_for(name)), runner, 50)
        assert len(measured) == len(set(measured)) == len(runner.asked) == 50

    def test_measures_the_defaults_first(self, name: str) -> None:
        task = Task(SMALL, TARGET)
        assert strategy(name, task, model_for(name)).ask(6)[:2] == task.defaults()
        assert strategy(name, task, model_for(name)).ask(1) == task.defaults()[:1]

    def test_finds_the_optimum_of_a_space_within_the_budget_and_then_ends(self, name: str) -> None:
        # A third of all candidates fail, none of them the optimum.
        def fails(candidate: Candidate) -> FailureKind | None:
            return "crash" if candidate.schedule.values["block"] == 4 else None

        task = Task(SMALL, TARGET, Layout.make("fake", groups=8, order="column"))
        found = strategy(name, task, model_for(name))
        measured = search(found, FakeRunner(failure=fails), 1000)
        assert len(measured) == len(set(measured)) == task.size()
        assert best_of_all(found.ranked()[0]) and found.ask(4) == []

    def test_depends_on_seed_and_records_alone(self, name: str) -> None:
        task = Task(SMALL, TARGET)
        first = search(strategy(name, task, model_for(name), seed=1), FakeRunner(), 40)
        again = search(strategy(name, task, model_for(name), seed=1), FakeRunner(), 40)
        assert first == again
        if name != "exhaustive":
            assert first != search(strategy(name, task, model_for(name), seed=2), FakeRunner(), 40)

    def test_goes_on_where_a_killed_one_was(self, name: str) -> None:
        task, runner, model = Task(SMALL, TARGET), FakeRunner(), model_for(name)
        killed = strategy(name, task, model, seed=3)
        search(killed, runner, 32)
        state = json.loads(json.dumps(killed.state()))
        resumed = strategy(name, task, model, seed=3)
        resumed.restore(state)
        # Records come back in another order.
        resumed.tell(list(killed.records.values())[::-1])
        assert resumed.ask(8) == killed.ask(8)

    def test_what_was_asked_is_not_asked_again_until_released(self, name: str) -> None:
        found = strategy(name, Task(SMALL, TARGET), model_for(name))
        first = found.ask(10)
        assert not set(first) & set(found.ask(10))
        found.release()
        assert found.ask(2) == first[:2]


def test_an_unknown_strategy_is_refused_with_the_names() -> None:
    with pytest.raises(UnknownNameError, match="'annealing'; allowed: bayesian, evolutionary"):
        strategy("annealing", Task(SMALL, TARGET))


def trials_to_optimum(name: str, seed: int) -> int:
    found = strategy(name, Task(SMALL, TARGET), model_for(name), seed)
    measured: list[Candidate] = []
    while not any(best_of_all(candidate) for candidate in measured):
        measured += search(found, FakeRunner(), 8)
    return len(measured)


def test_evolution_beats_chance_and_the_model_helps_it() -> None:
    mean = {
        name: np.mean([trials_to_optimum(name, seed) for seed in range(4)])
        for name in ("random", "plain_evolutionary", "evolutionary")
    }
    assert mean["evolutionary"] < mean["plain_evolutionary"] < mean["random"] / 2
    assert mean["evolutionary"] <= 40, mean


def test_of_a_small_space_evolution_predicts_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = Task(SMALL, TARGET, INSIDE), cost_model("xgboost")
    found = strategy("evolutionary", task, model)
    measured = search(found, FakeRunner(), 16)
    predicted: list[int] = []
    predict = model.predict

    def watched(candidates: Sequence[Candidate]) -> Prediction:
        predicted.append(len(candidates))
        return predict(candidates)

    monkeypatch.setattr(model, "predict", watched)
    found.ask(1)
    assert predicted == [task.size() - len(measured)]


def test_evolution_follows_the_objective() -> None:
    def joules(candidate: Candidate) -> float:
        # The least energy is where the latency is greatest.
        return 1e-3 / smooth(candidate)

    found = strategy(
        "evolutionary", Task(SMALL, TARGET), cost_model("xgboost"), 0, parse_objective("energy")
    )
    search(found, FakeRunner(joules=joules), 80)
    assert found.ranked()[0] == max(Task(SMALL, TARGET).enumerate(), key=smooth)
