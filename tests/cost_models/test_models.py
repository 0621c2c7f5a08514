from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cost_models.made_up import LARGE, SMALL, TARGET, World, fails

from wattune.cost_models import CostModel, Prediction, cost_model
from wattune.cost_models.boosting import require_xgboost
from wattune.cost_models.examples import Centres, speed_weights
from wattune.cost_models.metrics import (
    average_peak_score,
    pairwise_accuracy,
    regret,
    spearman,
)
from wattune.cost_models.prior import default_rates
from wattune.cost_models.xgboost_model import XGBoostModel
from wattune.errors import DatabaseError, MissingDependencyError, UnknownNameError
from wattune.schedules.candidate import Conditions, Record


def trained(records: list[Record], name: str = "xgboost") -> CostModel:
    model = cost_model(name)
    model.update(records)
    return model


def skill(model: CostModel, held_out: list[Record]) -> float:
    """Return Spearman's correlation on records the model has not seen."""
    found = model.predict([record.candidate for record in held_out]).latency
    return spearman(found, [record.latency for record in held_out])


def median_error(model: CostModel, held_out: list[Record]) -> float:
    """Return the median of |ln(predicted / measured)|."""
    found = model.predict([record.candidate for record in held_out]).latency
    measured = np.array([record.latency for record in held_out])
    return float(np.median(np.abs(np.log(found / measured))))


def assert_equal(first: Prediction, second: Prediction) -> None:
    for field in dataclasses.fields(Prediction):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_after_64_records_it_orders_what_it_has_not_seen(world: World) -> None:
    records = world.records(564)
    held_out = records[64:]
    model = trained(records[:64])
    predicted = model.predict([record.candidate for record in held_out])
    measured = np.array([record.latency for record in held_out])
    assert spearman(predicted.latency, measured) >= 0.85
    assert pairwise_accuracy(predicted.latency, measured) >= 0.8
    assert average_peak_score(predicted.latency, measured, 5) >= 0.7
    assert regret(predicted.latency, measured, 20) <= 0.1
    # Physics knows the scale, but none of the penalties; chance knows nothing.
    assert skill(trained(records[:64], "prior"), held_out) <= 0.5
    assert abs(skill(trained(records[:64], "random"), held_out)) <= 0.15


def test_skill_comes_from_the_records(world: World) -> None:
    records = world.records(364)
    times = [record.measurement for record in records[:64]]
    times = [times[at] for at in world.rng.permutation(len(times))]
    wrong = [dataclasses.replace(r, measurement=m) for r, m in zip(records, times, strict=False)]
    assert abs(skill(trained(wrong), records[64:])) <= 0.45


def test_uncertainty_is_about_as_large_as_the_error(world: World) -> None:
    records = world.records(464)
    predicted = trained(records[:64]).predict([record.candidate for record in records[64:]])
    measured = np.array([record.latency for record in records[64:]])
    error = np.abs(np.log(predicted.latency / measured))
    within = np.mean(error <= predicted.latency_std)
    assert 0.6 <= within <= 0.95
    assert spearman(predicted.latency_std, error) > 0


def test_what_is_learned_on_one_size_helps_on_another(world: World) -> None:
    small, large = world.records(96, SMALL), world.records(400, LARGE)
    model = trained(small)
    assert skill(model, large) >= 0.75
    assert skill(trained(small, "prior"), large) <= 0.5
    # The level carries over as well; the new size's own records then make it better.
    error_before = median_error(model, large[100:])
    model.update(large[:100])
    assert skill(model, large[100:]) >= 0.9
    assert median_error(model, large[100:]) < min(0.1, error_before)
    assert error_before < 0.25


def test_records_in_several_updates_are_worth_the_same_as_at_once(world: World) -> None:
    records = world.records(60)
    candidates = world.candidates(50)
    stepwise = cost_model("xgboost")
    for start in range(0, 60, 15):
        stepwise.update(records[: start + 15])
    assert_equal(stepwise.predict(candidates), trained(records).predict(candidates))


def test_before_there_are_records_the_prior_answers(world: World) -> None:
    candidates = world.candidates(40)
    model = cost_model("xgboost")
    assert_equal(model.predict(candidates), cost_model("prior").predict(candidates))
    model.update(world.records(5))
    prior = cost_model("prior").predict(candidates)
    np.testing.assert_array_equal(model.predict(candidates).latency, prior.latency)
    assert model.predict([]).latency.shape == (0,)


def test_measured_rates_reach_the_prior(world: World) -> None:
    slow = default_rates(TARGET)
    slow = dataclasses.replace(slow, bytes={name: rate / 10 for name, rate in slow.bytes.items()})
    candidates = world.candidates(5)
    guessed = cost_model("xgboost").predict(candidates).latency
    told = cost_model("xgboost", rates={TARGET.key: slow}).predict(candidates).latency
    assert (told > 3 * guessed).all()


def test_failures_teach_which_candidates_are_valid(world: World) -> None:
    records = world.records(128, failing=True)
    candidates = world.candidates(400)
    bad = np.array([fails(candidate.schedule.values) for candidate in candidates])
    assert 20 <= bad.sum() <= 200
    valid = trained(records).predict(candidates).valid
    assert ((valid >= 0) & (valid <= 1)).all()
    assert np.mean((valid < 0.5) == bad) >= 0.95
    good = [record for record in records if record.valid]
    assert (trained(good).predict(candidates).valid == 1).all()


def test_energy_is_predicted_only_where_it_was_measured(world: World) -> None:
    without, records = world.records(64), world.records(428, energy=True)
    candidates = [record.candidate for record in records[128:]]
    model = trained(without)
    assert model.predict(candidates).energy is None
    assert model.predict(candidates).energy_std is None
    model.update(records[:128])
    found = model.predict(candidates)
    assert found.energy is not None and found.energy_std is not None
    joules = np.array([record.joules for record in records[128:]], np.float64)
    seconds = np.array([record.latency for record in records[128:]])
    # Energy is mostly latency; what counts is the power beyond it.
    assert spearman(found.energy / found.latency, joules / seconds) >= 0.85
    assert np.median(np.abs(np.log(found.energy / joules))) <= 0.15


def test_a_few_joules_already_give_an_energy(world: World) -> None:
    model = trained(world.records(30) + world.records(3, energy=True))
    found = model.predict(world.candidates(10))
    assert found.energy is not None
    assert ((found.energy / found.latency > 30) & (found.energy / found.latency < 100)).all()


@pytest.mark.parametrize("name", ["xgboost", "mlp", "prior", "random"])
def test_a_model_comes_back_from_text_as_it_was(world: World, name: str, tmp_path: Path) -> None:
    records = world.records(60, failing=True) + world.records(20, LARGE, energy=True)
    # What is seen first decides the order of the columns; here it is not what is predicted.
    records[0] = dataclasses.replace(records[0], conditions=Conditions("hot", threads=2))
    candidates = world.candidates(50) + world.candidates(50, LARGE)
    model = cost_model(name)
    model.update(records[:70])
    again = cost_model(name)
    again.from_state(json.loads(json.dumps(model.to_state(), allow_nan=False)))
    assert_equal(again.predict(candidates), model.predict(candidates))
    # It also goes on learning as the original would.
    model.save(tmp_path / "model.json")
    loaded = cost_model(name)
    loaded.load(tmp_path / "model.json")
    for each in (model, loaded):
        each.update(records[70:])
    assert_equal(loaded.predict(candidates), model.predict(candidates))


def test_files_that_are_no_model_are_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    model = trained(world.records(20))
    with pytest.raises(DatabaseError, match=r"model\.json cannot be read"):
        model.load(path)
    cost_model("random").save(path)
    with pytest.raises(DatabaseError, match="is of kind 'random'; expected 'xgboost'"):
        model.load(path)
    model.save(path)
    state = json.loads(path.read_text())
    path.write_text(path.read_text()[:-100])
    with pytest.raises(DatabaseError, match="cannot be read"):
        model.load(path)
    state["latency"]["boosters"][0] = state["latency"]["boosters"][0][:-40]
    path.write_text(json.dumps(state))
    with pytest.raises(DatabaseError, match="is damaged"):
        model.load(path)
    path.write_text(json.dumps({**state, "version": 9}))
    with pytest.raises(DatabaseError, match="version 9, this program knows 4"):
        model.load(path)


def test_records_of_a_template_that_is_gone_change_nothing(world: World) -> None:
    records = world.records(40)
    gone = dataclasses.replace(
        records[0],
        candidate=dataclasses.replace(
            records[0].candidate,
            schedule=dataclasses.replace(records[0].candidate.schedule, template="gone"),
        ),
    )
    candidates = world.candidates(20)
    assert_equal(
        trained([*records, gone]).predict(candidates), trained(records).predict(candidates)
    )


@pytest.mark.measure
def test_an_update_with_500_records_is_fast(world: World) -> None:
    records = world.records(500, failing=True)
    best = float("inf")
    for _ in range(3):
        model = cost_model("xgboost")
        # The processor's time: one thread, whatever else this machine is doing.
        start = time.process_time()
        model.update(records)
        best = min(best, time.process_time() - start)
    assert best < 0.5


def test_a_missing_xgboost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    require_xgboost.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"xgboost, which is not installed: pip"):
        XGBoostModel()


def test_unknown_models_are_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown cost model 'oracle'; allowed: mlp"):
        cost_model("oracle")


def test_weights_and_levels_by_hand() -> None:
    latency = np.log([1.0, 2.0, 40.0, 300.0])
    weights = speed_weights(latency, ["a", "a", "a", "b"])
    assert weights.tolist() == pytest.approx([1.0, 0.5, 0.1, 1.0])
    levels = Centres.fit(np.array([1.0, 3.0, 6.0]), np.array([1.0, 1.0, 1.0]), ["a", "a", "b"])
    # Means 2 and 6, in common 4; each is drawn there by one record's weight.
    assert levels.of(["a", "b", "new"]).tolist() == pytest.approx([8 / 3, 5.0, 4.0])
    assert levels.std(["a", "new"], 0.6).tolist() == pytest.approx([0.6 / 3**0.5, 0.6])
