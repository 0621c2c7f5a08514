"""The prior of power, against runs whose power is known: W = static + sum of joules x rates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.cost_models.made_up import TARGET, World

from wattune.cost_models import cost_model
from wattune.cost_models.energy_prior import EnergyConstants, EnergyPrior
from wattune.cost_models.features import log_size
from wattune.cost_models.uncertainty import Calibration
from wattune.schedules.candidate import Measurement, Record
from wattune.schedules.template import template_of

STATIC, DRAM, DOT = 35.0, 60e-12, 4e-12


def runs(count: int, noise: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Draw micro-benchmarks: counts, seconds and watts."""
    rng = np.random.default_rng(0)
    counts = {
        "bytes.memory": 10 ** rng.uniform(6, 9, count),
        "operations.dot": 10 ** rng.uniform(6, 10, count),
    }
    seconds = counts["bytes.memory"] / 3e11 + counts["operations.dot"] / 4e12 + 1e-6
    watts = STATIC + (DRAM * counts["bytes.memory"] + DOT * counts["operations.dot"]) / seconds
    return counts, seconds, watts * np.exp(rng.normal(0, noise, count))


def test_constants_come_back_from_micro_benchmarks() -> None:
    found = EnergyConstants.fit(*runs(60))
    assert found.watts == pytest.approx(STATIC, rel=1e-6)
    assert found.joules == pytest.approx({"bytes.memory": DRAM, "operations.dot": DOT}, rel=1e-6)
    counts, seconds, watts = runs(60, 0.03)
    noisy = EnergyConstants.fit(counts, seconds, watts)
    # Three constants of 60 runs with 3 % of noise: the fit is 0.03 * sqrt(3 / 60) = 0.7 % off.
    true = runs(60)[2]
    assert np.sqrt(np.mean((noisy.power(counts, seconds) / true - 1) ** 2)) < 0.015
    # The noise was drawn with 3 %; what is told is never below 5 %.
    assert noisy.std == 0.05


def test_no_constant_is_negative() -> None:
    counts, seconds, watts = runs(60)
    # Power that falls with the operations: free least squares would make energy of them.
    wrong = watts - 2 * DOT * counts["operations.dot"] / seconds
    found = EnergyConstants.fit(counts, seconds, np.maximum(wrong, 1.0))
    assert found.joules["operations.dot"] == 0.0
    assert min(found.watts, *found.joules.values()) >= 0.0


def test_with_few_records_only_the_mean_power_is_known() -> None:
    counts, seconds, watts = runs(8)
    found = EnergyConstants.fit(counts, seconds, watts)
    assert found.joules == {}
    assert found.watts == pytest.approx(float(np.exp(np.log(watts).mean())))


def test_features_hold_the_counts_and_machines_their_own_constants() -> None:
    counts, seconds, watts = runs(60)
    names = ["template=a", *counts, "bytes.l1"]
    logs = [np.array([log_size(x) for x in counts[name]]) for name in counts]
    absent = np.full(60, np.nan)
    matrix = np.stack([np.ones(60), *logs, absent], axis=1).astype(np.float32)
    twice = np.concatenate([watts[:30], 2 * watts[30:]])
    machines = ["a"] * 30 + ["b"] * 30
    prior = EnergyPrior.fit(names, matrix, np.log(seconds), np.log(twice), machines)
    again = EnergyPrior.from_state(prior.to_state())
    assert again == prior
    found = again.log_power(names, matrix, np.log(seconds), machines)
    # float32 logarithms keep a count to 1e-5.
    np.testing.assert_allclose(np.exp(found), twice, rtol=1e-4)
    unseen = again.log_power(names, matrix, np.log(seconds), ["new"] * 60)
    np.testing.assert_allclose(np.exp(unseen), watts * np.sqrt(2), rtol=1e-4)
    assert again.std(["a", "new"]).tolist() == [0.05, 0.5]


def physical(world: World, record: Record) -> Record:
    """Give a record the joules of a machine that obeys the prior."""
    candidate = record.candidate
    counts = template_of(candidate).counts(candidate.problem, TARGET, candidate.schedule.values)
    joules = STATIC * record.latency
    joules += DRAM * counts.bytes["memory"] + DOT * counts.operations["dot"]
    made = Measurement((record.latency,), joules, "rapl")
    return dataclasses.replace(record, measurement=made)


def test_the_prior_model_learns_energy_and_no_latency(world: World) -> None:
    records = [physical(world, record) for record in world.records(200)]
    model = cost_model("prior")
    candidates = [record.candidate for record in records[100:]]
    before = model.predict(candidates)
    assert before.energy is None
    model.update([*records[:100], *world.records(10)])
    found = model.predict(candidates)
    np.testing.assert_array_equal(found.latency, before.latency)
    assert found.energy is not None and found.energy_std is not None
    counts = [template_of(c).counts(c.problem, TARGET, c.schedule.values) for c in candidates]
    truth = STATIC * found.latency + [
        DRAM * each.bytes["memory"] + DOT * each.operations["dot"] for each in counts
    ]
    np.testing.assert_allclose(found.energy, truth, rtol=0.02)


def test_calibration_finds_the_noise_and_what_members_agree_on_too_much() -> None:
    rng = np.random.default_rng(0)
    disagreement = rng.uniform(0.05, 0.3, 4000)
    errors = rng.normal(0, np.sqrt(4 * disagreement**2 + 0.01))
    found = Calibration.fit(errors, disagreement, np.ones(4000))
    assert found.slope == pytest.approx(4.0, rel=0.2)
    assert found.floor == pytest.approx(0.01, rel=0.3)
    agreed = Calibration.fit(errors, np.zeros(4000), np.ones(4000))
    assert agreed.std(np.zeros(2)) == pytest.approx(errors.std(), rel=0.01)
    assert Calibration.from_state(found.to_state()) == found
