"""The simulated device that stands for a meter: it is what it says, and searches differ on it."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.energy_search import PROBLEMS, TARGET, compared, summary
from benchmarks.energy_simulator import MeasuringApart

from wattune.compiler.search.task import Task
from wattune.schedules.candidate import Candidate


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    task, rng = Task(PROBLEMS[0], TARGET), np.random.default_rng(0)
    return task.spread(40, rng)


def test_a_device_is_its_seed(candidates: list[Candidate]) -> None:
    one, same, other = (MeasuringApart(TARGET, seed) for seed in (1, 1, 2))
    assert [one.truth(c) for c in candidates] == [same.truth(c) for c in candidates]
    assert [one.truth(c) for c in candidates] != [other.truth(c) for c in candidates]


def test_the_meter_has_noise_and_the_device_grows_warm(candidates: list[Candidate]) -> None:
    device = MeasuringApart(TARGET, 0, spread=0.006)
    records = list(device.energy(candidates[:1] * 30))
    joules = np.array([record.joules for record in records], float)
    assert device.energies == 30
    # Two windows of 0.6 %: 0.42 % once the temperature has settled.
    assert 0.002 < np.std(joules[10:]) / joules[10:].mean() < 0.008
    temperatures = [record.conditions.temperature_c for record in records]
    assert len(set(temperatures)) > 5
    assert all(record.joules is None for record in device.run(candidates))


def test_power_differs_at_equal_latency(candidates: list[Candidate]) -> None:
    device = MeasuringApart(TARGET, 0)
    powers = [found.joules / found.seconds for found in map(device.truth, candidates)]
    assert np.std(np.log(powers)) > 0.05
    assert all(70 < power < 800 for power in powers)


@pytest.mark.slow
def test_sparse_energies_find_what_all_energies_find() -> None:
    row = compared(PROBLEMS[0], 48, 1)
    found = summary([row])
    assert found["energies_ratio"]["mean"] < 0.9
    assert found["worst_joules_ratio"] < 1.2
    assert row["sparse"]["joules"] < 1.05 * row["latency"]["joules"]
