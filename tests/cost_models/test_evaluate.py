from __future__ import annotations

from tests.cost_models.made_up import LARGE, SMALL, World

from wattune.cost_models import cost_model
from wattune.cost_models.evaluate import evaluate


def test_a_model_is_judged_on_candidates_it_was_not_trained_on(world: World) -> None:
    records = world.records(200, SMALL, failing=True) + world.records(100, LARGE)
    # A candidate measured twice must not be on both sides.
    again = [world.record(record.candidate) for record in records[-100:]]
    found = evaluate(cost_model("xgboost"), [*records, *again], train=64)
    small, large = found
    assert (small.problem, small.trained) == (SMALL, 64)
    valid = sum(record.valid for record in records[:200])
    assert valid - 64 <= small.held_out < 136
    assert (large.problem, large.trained, large.held_out) == (LARGE, 64, 36)
    assert min(small.spearman, large.spearman) >= 0.8
    control = evaluate(cost_model("random"), records, train=64)
    assert abs(control[0].spearman) <= 0.35


def test_a_problem_with_too_few_candidates_left_is_not_reported(world: World) -> None:
    records = world.records(70, SMALL)
    assert evaluate(cost_model("prior"), records, train=64) == []
    assert [each.held_out for each in evaluate(cost_model("prior"), records, train=60)] == [10]
    more = records + world.records(20, LARGE)
    assert len(evaluate(cost_model("prior"), more, train=60)) == 1
