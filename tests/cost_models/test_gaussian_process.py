"""The Gaussian process against closed forms, numerical slopes and sampling."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from wattune.cost_models import gaussian_process as module
from wattune.cost_models.gaussian_process import GaussianProcess, log_expected_improvement

GROUPS = np.array([0, 1, 2, 2])


def data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.random((count, 4))
    # The first group matters, the second a little, the third not at all.
    return rows, np.sin(6 * rows[:, 0]) + 0.1 * rows[:, 1]


def prior() -> GaussianProcess:
    return GaussianProcess(GROUPS, np.ones(3))


def test_fitting_finds_what_matters_and_predicts_unseen_points() -> None:
    rows, labels = data(60)
    fitted = prior().fit(rows, labels)
    assert fitted.weights[0] > 10 * fitted.weights[1] > 10 * fitted.weights[2] / 5
    asked, truth = data(200, seed=1)
    mean, std = fitted.predict(rows, labels, asked)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.1 * truth.std()
    # Nine of ten within two standard deviations and a hundredth: the process knows its error.
    assert np.mean(np.abs(mean - truth) < 2 * std + 0.01) > 0.9


def test_at_a_known_point_it_says_what_was_measured() -> None:
    rows, labels = data(12)
    exact = GaussianProcess(GROUPS, np.ones(3), noise=1e-9)
    mean, std = exact.predict(rows, labels, rows)
    np.testing.assert_allclose(mean, labels, atol=1e-3)
    assert std.max() < 0.02 * labels.std()
    far = exact.predict(rows, labels, rows + 100.0)[1]
    assert far.min() > 10 * std.max()


def test_the_error_at_what_is_left_out_is_that_of_a_process_without_it() -> None:
    rows, labels = data(20)
    process = prior().fit(rows, labels)
    errors = process.left_out(rows, labels)
    for at in (0, 7, 19):
        others = np.arange(20) != at
        mean, _ = process.predict(rows[others], labels[others], rows[[at]])
        # The level is of all records in one and of the others in the other.
        assert errors[at] == pytest.approx(labels[at] - mean[0], abs=0.03 * labels.std())


def test_the_likelihoods_slope_is_the_numerical_one() -> None:
    rows, labels = data(15)
    linear = np.array([False, True, False])
    parts = GaussianProcess(GROUPS, np.ones(3), trends=frozenset([1]))._parts(rows)
    at = np.log(np.array([2.0, 0.5, 1.0, 0.01]))
    slope = module._likelihood(scipy, np.exp(at), parts, linear, labels)[1]
    for place in range(4):
        step = np.eye(4)[place] * 1e-5
        above = module._likelihood(scipy, np.exp(at + step), parts, linear, labels)[0]
        below = module._likelihood(scipy, np.exp(at - step), parts, linear, labels)[0]
        assert slope[place] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-6)


def test_a_trend_reaches_beyond_what_is_near_and_its_use_is_learnt() -> None:
    rows, labels = data(40)
    groups = np.array([0, 1, 2, 3])
    process = GaussianProcess(groups, np.ones(4), trends=frozenset([3]))
    follows = labels + 2 * rows[:, 3]
    fitted = process.fit(rows, follows)
    far = np.tile(rows[:1], (2, 1))
    far[1, 3] += 10
    mean, std = fitted.predict(rows, follows, far)
    assert mean[1] - mean[0] == pytest.approx(20, rel=0.1)
    # Farther out the slope's uncertainty counts for more.
    assert std[1] > std[0]
    # Of labels that do not follow it the weight falls.
    assert process.fit(rows, labels).weights[3] < 0.2 * fitted.weights[3]


def test_expected_improvement_is_the_mean_of_what_falls_below() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, 400_000)
    found = np.exp(log_expected_improvement(np.array([1.0]), np.array([0.5]), 0.8))[0]
    assert found == pytest.approx(np.maximum(0.8 - draws, 0).mean(), rel=0.01)


def test_far_from_the_best_the_order_stays() -> None:
    mean = np.array([7.0, 7.99, 8.01, 9.0, 100.0])
    found = log_expected_improvement(mean, np.ones(5), 0.0)
    assert np.isfinite(found).all() and (np.diff(found) < 0).all()
