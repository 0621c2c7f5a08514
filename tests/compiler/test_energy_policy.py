"""The arithmetic of sparse energy measurement: what is trusted, how many, which."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wattune.compiler.search.energy_policy import (
    Forecast,
    Policy,
    Trust,
    count_to_measure,
    drifted,
    energies_left,
    next_fraction,
    pick,
    trust,
)

POLICY = Policy()


def forecasts_of(
    error: float, noise: float, count: int = 400, signal: float = 0.1
) -> list[Forecast]:
    """Make powers that differ by ``signal``, measured and predicted with these errors."""
    rng = np.random.default_rng(0)
    true = signal * rng.standard_normal(count)
    measured = true + noise * rng.standard_normal(count)
    predicted = true + error * rng.standard_normal(count)
    return [Forecast(float(m), float(p), noise) for m, p in zip(measured, predicted, strict=True)]


def test_signal_to_noise_is_that_of_the_definition() -> None:
    policy = Policy(window=400)
    found = trust(forecasts_of(error=0.03, noise=0.01), policy)
    # signal 0.1^2 + 0.01^2, error 0.03^2 + 0.01^2: 10.0 dB; ceiling 101: 20.0 dB. With 400 draws
    # a variance is known to 7 %, a ratio of two to 0.4 dB.
    assert found.snr_db == pytest.approx(10.0, abs=0.8)
    assert found.ceiling_db == pytest.approx(20.04, abs=0.4)
    assert found.skill == pytest.approx((1 - 0.099) / (1 - 0.0099), abs=0.03)


def test_a_perfect_model_under_noise_has_full_skill() -> None:
    found = trust(forecasts_of(error=0.0, noise=0.05), Policy(window=400))
    assert found.skill == pytest.approx(1.0, abs=0.05)
    # The ratio itself stays far below what it would be without noise.
    assert found.snr_db is not None and found.snr_db < 8.0


def test_a_model_that_knows_only_the_mean_has_none() -> None:
    made = [Forecast(one.measured, 0.0, one.spread) for one in forecasts_of(0.0, 0.01)]
    found = trust(made, Policy(window=400))
    assert found.skill == pytest.approx(0.0, abs=0.05)


def test_only_the_last_predictions_tell_the_error() -> None:
    bad, good = forecasts_of(error=0.5, noise=0.01), forecasts_of(error=0.01, noise=0.01)
    late = trust(bad + good, POLICY)
    assert late.skill is not None and late.skill > 0.9
    early = trust(good + bad, POLICY)
    assert early.skill is not None and early.skill < 0.0


def test_where_all_energies_are_alike_nothing_is_explained() -> None:
    # Six of one spread beside others: the variance is less than the noise says.
    same = [Forecast(1.0 + 1e-4 * at, 1.0, 0.01) for at in range(6)]
    assert trust(same, POLICY).skill is None
    assert trust([], POLICY) == Trust(0)
    assert trust(same[:1], POLICY) == Trust(1)
    assert trust([Forecast(1.0, 1.0)] * 3, POLICY).skill is None


def test_the_fraction_follows_the_skill() -> None:
    def after(
        fraction: float, skill: float | None, energies: int = 99, moved: bool = False
    ) -> float:
        return next_fraction(fraction, energies, Trust(99, skill=skill), moved, POLICY)[0]

    assert after(1.0, 0.9, energies=POLICY.learning - 1) == 1.0
    assert after(1.0, 0.9, energies=POLICY.learning) == 0.5
    assert after(1 / 16, 0.9) == 1 / 16
    assert after(0.25, 0.5) == 0.25
    assert after(0.25, 0.1) == 0.5
    assert after(1.0, -3.0) == 1.0
    assert after(0.5, None) == 0.25, "nothing is to be found where all are alike"
    assert after(0.25, 0.9, moved=True) == 1.0


@pytest.mark.parametrize(
    ("considered", "fraction", "incumbent", "left", "count"),
    [
        (0, 1.0, True, 99, 0),
        (16, 1.0, True, 99, 16),
        (16, 0.5, True, 99, 8),
        (16, 1 / 16, True, 99, 3),
        (16, 1 / 16, False, 99, 4),
        (2, 1 / 16, False, 99, 2),
        (33, 0.25, True, 99, 9),
        (16, 1.0, True, 10, 9),
        (16, 1.0, False, 10, 10),
        (16, 1.0, True, -50, 3),
        (16, 1.0, False, 0, 4),
    ],
)
def test_how_many(considered: int, fraction: float, incumbent: bool, left: int, count: int) -> None:
    assert count_to_measure(considered, fraction, incumbent, left, POLICY) == count


def test_energies_are_at_most_a_share_of_the_latencies() -> None:
    assert energies_left(10, 3, POLICY) == POLICY.learning - 3, "a model learns first"
    assert energies_left(400, 60, POLICY) == 40
    assert energies_left(400, 130, POLICY) == -30


def test_the_least_predicted_and_a_random_one() -> None:
    predicted = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    seen = set()
    for seed in range(40):
        chosen, sentinels = pick(predicted, 3, np.random.default_rng(seed))
        assert chosen == [1, 3]
        seen.update(sentinels)
        assert len(sentinels) == 1
    assert seen == {0, 2, 4}
    rng = np.random.default_rng(0)
    assert pick(predicted, 5, rng) == ([1, 3, 4, 2, 0], [])
    assert pick(predicted, 0, rng) == ([], [])
    assert pick(np.empty(0), 3, rng) == ([], [])


def test_an_incumbent_moves_beyond_the_noise_or_within() -> None:
    # The difference of two energies of 1 % has a standard deviation of 1.4 %.
    spreads = [0.01] * 5
    inside = math.exp(0.9 * POLICY.drift * math.sqrt(2) * 0.01)
    outside = math.exp(1.1 * POLICY.drift * math.sqrt(2) * 0.01)
    assert not drifted(inside, spreads, POLICY) and not drifted(1 / inside, spreads, POLICY)
    assert drifted(outside, spreads, POLICY) and drifted(1 / outside, spreads, POLICY)
    assert not drifted(2.0, [], POLICY), "a meter that names no spread raises no alarm"
