from __future__ import annotations

from functools import partial

import pytest
from tests.cost_models.made_up import LARGE, SMALL, World

from wattune.cost_models import cost_model
from wattune.cost_models.evaluate import by_machine, evaluate, mean_accuracy, summary

XGBOOST, PRIOR = partial(cost_model, "xgboost"), partial(cost_model, "prior")


def test_a_model_is_judged_on_candidates_it_was_not_trained_on(world: World) -> None:
    records = world.records(200, SMALL, failing=True) + world.records(100, LARGE)
    # A candidate measured twice must not be on both sides.
    again = [world.record(record.candidate) for record in records[-100:]]
    found = evaluate(XGBOOST, [*records, *again], train=64)
    small, large = found
    assert (small.problem, small.trained) == (SMALL, 64)
    valid = sum(record.valid for record in records[:200])
    assert valid - 64 <= small.held_out < 136
    assert (large.problem, large.trained, large.held_out) == (LARGE, 64, 36)
    assert min(small.accuracy.spearman, large.accuracy.spearman) >= 0.8
    control = evaluate(partial(cost_model, "random"), records, train=64)
    assert abs(control[0].accuracy.spearman) <= 0.35


def test_a_problem_with_too_few_candidates_left_is_not_reported(world: World) -> None:
    records = world.records(70, SMALL)
    assert evaluate(PRIOR, records, train=64) == []
    assert [each.held_out for each in evaluate(PRIOR, records, train=60)] == [10]
    more = records + world.records(20, LARGE)
    assert len(evaluate(PRIOR, more, train=60)) == 1


def test_with_transfer_a_new_shape_starts_warm(world: World) -> None:
    records = world.records(150, SMALL) + world.records(150, LARGE)
    cold = evaluate(XGBOOST, records, train=16)
    warm = evaluate(XGBOOST, records, train=16, others=records)
    for before, after in zip(cold, warm, strict=True):
        assert after.accuracy.pairwise >= 0.85 > before.accuracy.pairwise


def test_energy_skill_is_not_skill_on_latency(world: World) -> None:
    records = world.records(400, energy=True)
    (learned,) = evaluate(XGBOOST, records, train=128)
    (control,) = evaluate(partial(cost_model, "random"), records, train=128)
    assert control.accuracy.energy_skill is None
    assert learned.accuracy.energy_skill is not None and learned.accuracy.energy_skill >= 0.8
    (without,) = evaluate(XGBOOST, world.records(100), train=64)
    assert without.accuracy.energy_skill is None


def test_figures_are_averaged_over_splits_and_machines_stay_apart(world: World) -> None:
    records = world.records(90, SMALL) + world.records(80, LARGE)
    trials = [each for seed in range(2) for each in evaluate(PRIOR, records, 64, seed)]
    small, large = summary(trials)
    assert (small["splits"], small["trained"], small["held_out"]) == (2, 64, 26)
    assert large["problem"] == LARGE.to_json()
    mine = [each.accuracy.spearman for each in trials if each.problem == SMALL]
    assert small["spearman"] == pytest.approx(sum(mine) / 2)
    assert mean_accuracy(trials)["energy_skill"] is None
    assert {key[2]: len(found) for key, found in by_machine(records).items()} == {"cold": 170}
