"""Optuna's samplers as strategies: they keep the rules that all strategies keep."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.search import optuna_search
from wattune.compiler.search.strategy import strategy, strategy_names
from wattune.compiler.search.task import Task
from wattune.errors import MissingDependencyError, UnknownNameError
from wattune.schedules.candidate import Candidate
from wattune.schedules.template import Layout

pytestmark = pytest.mark.usefixtures("fake_templates")


def search(name: str, task: Task, budget: int, seed: int = 0, batch: int = 4) -> list[Candidate]:
    found = strategy(name, task, seed=seed)
    runner = FakeRunner(failure=lambda c: "crash" if c.schedule.values["block"] == 4 else None)
    while len(runner.asked) < budget and (
        asked := found.ask(min(batch, budget - len(runner.asked)))
    ):
        found.tell(list(runner.run(asked)))
        found.release()
    return runner.asked


@pytest.mark.parametrize("name", ["optuna:tpe", "optuna:nsga2", "optuna:random"])
def test_samplers_keep_the_budget_never_repeat_and_depend_on_the_seed(name: str) -> None:
    task = Task(SMALL, TARGET)
    asked = search(name, task, 30)
    assert len(asked) == len(set(asked)) == 30
    assert asked[:2] == task.defaults()
    assert asked == search(name, task, 30)
    assert asked != search(name, task, 30, seed=1)


def test_a_small_space_is_searched_to_its_end() -> None:
    task = Task(SMALL, TARGET, Layout.make("fake", groups=8, order="column"))
    assert len(set(search("optuna:random", task, 1000, batch=16))) == task.size()


def test_the_sampler_learns_from_what_it_did_not_suggest() -> None:
    """The default is told to the study, failures are pruned there."""
    found: Any = strategy("optuna:tpe", Task(SMALL, TARGET))
    runner = FakeRunner(failure=lambda c: "crash" if c.schedule.template == "slow" else None)
    found.tell(list(runner.run(found.ask(2))))
    states = [trial.state.name for trial in found._study.trials]
    assert states == ["COMPLETE", "PRUNED"]
    assert found._study.best_value == pytest.approx(min(r.latency for r in found.records.values()))
    assert np.isfinite(found._study.best_value)


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        optuna_search, "find_spec", lambda name: None if name == "optuna" else real(name)
    )
    with pytest.raises(MissingDependencyError, match=r"optuna:tpe.*wattune\[bench-search\]"):
        strategy("optuna:tpe", Task(SMALL, TARGET))


def test_adapters_are_not_among_our_own_strategies() -> None:
    assert not any(name.startswith("optuna") for name in strategy_names())
    with pytest.raises(UnknownNameError, match="optuna:tpe"):
        strategy("optuna:none", Task(SMALL, TARGET))
