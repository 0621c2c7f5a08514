from __future__ import annotations

import numpy as np
import pytest

from wattune.cost_models.metrics import (
    average_peak_score,
    banded_spearman,
    coverage,
    negative_log_likelihood,
    pairwise_accuracy,
    ranks,
    regret,
    spearman,
)

# Measured 1, 2, 3, 4; the prediction swaps the first two and the last two.
MEASURED = [1.0, 2.0, 3.0, 4.0]
SWAPPED = [20.0, 10.0, 40.0, 30.0]


def test_ranks_share_ties() -> None:
    assert ranks([5.0, 1.0, 5.0, 9.0]).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_spearman_by_hand() -> None:
    # Rank differences 1, 1, 1, 1: 1 - 6 * 4 / (4 * 15) = 0.6.
    assert spearman(SWAPPED, MEASURED) == pytest.approx(0.6)
    assert spearman(MEASURED, np.exp(MEASURED)) == pytest.approx(1.0)
    assert spearman([4, 3, 2, 1], MEASURED) == pytest.approx(-1.0)
    assert spearman([1, 1, 1, 1], MEASURED) == 0.0
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2).
    assert spearman([7, 7, 8], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3))


def test_pairwise_accuracy_by_hand() -> None:
    # Of six pairs the two swapped ones are wrong.
    assert pairwise_accuracy(SWAPPED, MEASURED) == pytest.approx(4 / 6)
    assert pairwise_accuracy([1, 1, 1, 1], MEASURED) == 0.5
    # The pair of equal measurements does not count: two pairs left, one of them right.
    assert pairwise_accuracy([1, 2, 1.5], [1, 1, 2]) == pytest.approx(1 / 2)
    assert pairwise_accuracy([1, 2], [3, 3]) == 1.0


def test_peak_score_and_regret_by_hand() -> None:
    # Picks in order: costs 2, 1, 4, 3.
    assert average_peak_score(SWAPPED, MEASURED, 1) == pytest.approx(0.5)
    assert average_peak_score(SWAPPED, MEASURED, 2) == pytest.approx(0.75)
    assert average_peak_score(SWAPPED, MEASURED, 4) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert average_peak_score(SWAPPED, MEASURED, 99) == pytest.approx(3.5 / 4)
    assert regret(SWAPPED, MEASURED, 1) == pytest.approx(1.0)
    assert regret(SWAPPED, MEASURED, 2) == 0.0
    assert regret([3, 2, 1, 0], MEASURED, 3) == pytest.approx(1.0)


def test_a_mean_of_many_constant_predictions_is_no_skill() -> None:
    rng = np.random.default_rng(0)
    measured = rng.random(500)
    assert abs(spearman(rng.random(500), measured)) < 0.15
    assert abs(pairwise_accuracy(rng.random(500), measured) - 0.5) < 0.06


@pytest.mark.parametrize("predicted", [[], [1.0], [[1.0, 2.0]]])
def test_vectors_that_do_not_belong_together_are_refused(predicted: list[float]) -> None:
    with pytest.raises(ValueError, match="shapes are"):
        spearman(predicted, [1.0, 2.0])
    with pytest.raises(ValueError, match="k is 0"):
        regret([1.0], [1.0], 0)


def test_pairs_within_two_standard_errors_do_not_count() -> None:
    # Differences 1, 2, 3, 1, 2, 1; with errors of 0.4 each, those above 2 * 0.4 * sqrt(2) = 1.13.
    assert pairwise_accuracy(SWAPPED, MEASURED, [0.4] * 4) == 1.0
    assert pairwise_accuracy(SWAPPED, MEASURED, [0.3] * 4) == pytest.approx(4 / 6)
    # One noisy candidate takes its own pairs out: 2-3, 2-4 and 3-4 are left, the last one wrong.
    assert pairwise_accuracy(SWAPPED, MEASURED, [9.0, 0, 0, 0]) == pytest.approx(2 / 3)


def test_calibration_by_hand() -> None:
    measured, off = np.ones(4), np.exp([0.05, -0.15, 0.25, 0.0])
    assert coverage(off, measured, np.full(4, 0.1), 1.0) == 0.5
    assert coverage(off, measured, np.full(4, 0.1), 2.0) == 0.75
    # -ln of a normal density at its mean, and one standard deviation away.
    assert negative_log_likelihood([1], [1], [0.5]) == pytest.approx(
        -np.log(2 / np.sqrt(2 * np.pi))
    )
    assert negative_log_likelihood([np.e], [1], [1]) == pytest.approx(0.5 + 0.5 * np.log(2 * np.pi))
    errors = np.random.default_rng(0).normal(0, 0.2, 4000)
    predicted, right = (
        np.exp(errors),
        negative_log_likelihood(np.exp(errors), np.ones(4000), np.full(4000, 0.2)),
    )
    for wrong in (0.1, 0.4):
        assert negative_log_likelihood(predicted, np.ones(4000), np.full(4000, wrong)) > right + 0.1


def test_skill_within_bands_does_not_come_from_what_bands_differ_in() -> None:
    rng = np.random.default_rng(0)
    latency = np.repeat([1.0, 2.0, 4.0], 40)
    power = rng.random(120) + 10 / latency
    # Knowing the latency, and so the power's main part, is no skill; knowing the rest is.
    assert spearman(1 / latency, power) > 0.8
    assert banded_spearman(1 / latency, power, latency) == 0.0
    assert banded_spearman(power - 10 / latency, power, latency) == pytest.approx(1.0)
    assert banded_spearman([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]) is None
    # 1.00 to 1.10 is one band of five, 1.12 the next one.
    times = [1.0, 1.02, 1.05, 1.08, 1.1, 1.12]
    assert banded_spearman([1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 9], times) == pytest.approx(1.0)
