"""The process that starts from other tasks: its slopes, and whom it trusts."""

from __future__ import annotations

import numpy as np
import pytest

from wattune.cost_models import transfer_process as module
from wattune.cost_models.gaussian_process import squared_distances
from wattune.cost_models.transfer_process import TransferProcess

GROUPS = np.array([0, 1])


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Return two knobs and what two sources say, which has nothing to do with them."""
    rng = np.random.default_rng(seed)
    return np.hstack([rng.random((count, 2)), rng.random((count, 2))])


def prior() -> TransferProcess:
    return TransferProcess(GROUPS, np.full(2, 4.0), np.full(2, 0.5))


def test_the_likelihoods_slope_is_the_numerical_one() -> None:
    knobs, labels = rows(12)[:, :2], np.sin(np.arange(12.0))
    squares = np.stack([squared_distances(knobs[:, [at]], knobs[:, [at]]) for at in range(2)])
    at = np.log(np.array([2.0, 0.5, 0.3, 0.01]))
    _, slope, by_labels = module._likelihood(np.exp(at), squares, labels)
    for place in range(4):
        step = np.eye(4)[place] * 1e-5
        above = module._likelihood(np.exp(at + step), squares, labels)[0]
        below = module._likelihood(np.exp(at - step), squares, labels)[0]
        assert slope[place] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-6)
    step = np.eye(12)[3] * 1e-6
    above = module._likelihood(np.exp(at), squares, labels + step)[0]
    below = module._likelihood(np.exp(at), squares, labels - step)[0]
    assert by_labels[3] == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_with_one_measurement_points_are_ordered_by_the_mean_slowdown() -> None:
    known, asked = rows(1), rows(50, seed=1) + np.array([100, 100, 0, 0])
    mean, std = prior().predict(known, np.array([-9.0]), asked)
    assert np.array_equal(np.argsort(mean), np.argsort(asked[:, 2:].mean(axis=1)))
    # Far from the measurement all is as uncertain as before.
    np.testing.assert_allclose(std, np.sqrt(2 * prior().spread), rtol=0.05)


def test_it_learns_which_source_is_alike_and_where_both_mislead() -> None:
    shown, asked = rows(40), rows(100, seed=1)

    def truth(at: np.ndarray) -> np.ndarray:
        found: np.ndarray = -9 + at[:, 2] + 0.5 * np.sin(5 * at[:, 0])
        return found

    fitted = prior().fit(shown, truth(shown))
    assert fitted.trust[0] > 0.8 and fitted.trust[1] < 0.2
    assert fitted.weights[0] > 3 * fitted.weights[1]
    mean, _ = fitted.predict(shown, truth(shown), asked)
    assert np.abs(mean - truth(asked)).mean() < 0.05


def test_a_source_is_never_taken_to_be_the_wrong_way_round() -> None:
    shown = rows(20)
    fitted = prior().fit(shown, -9 - shown[:, 2])
    assert fitted.trust[0] == pytest.approx(0, abs=1e-6)


def test_a_knob_that_matters_here_alone_is_found() -> None:
    """By the sources the first knob matters less than the second."""
    shown, asked = rows(40), rows(100, seed=1)

    def truth(at: np.ndarray) -> np.ndarray:
        found: np.ndarray = -9 + 0.5 * np.sin(12 * at[:, 0])
        return found

    told = TransferProcess(GROUPS, np.array([0.3, 4.0]), np.full(2, 0.5))
    fitted = told.fit(shown, truth(shown))
    assert fitted.weights[0] > 3 and fitted.weights[1] < 0.1
    mean, _ = fitted.predict(shown, truth(shown), asked)
    assert np.abs(mean - truth(asked)).mean() < 0.03


def test_the_slope_of_the_priors_density_is_the_numerical_one() -> None:
    away = np.array([-6.0, 0.3, 2.0, -0.5])
    _, slope = module._unlikely(away, 2)
    for place in range(4):
        step = np.eye(4)[place] * 1e-6
        above, below = (module._unlikely(away + sign * step, 2)[0] for sign in (1, -1))
        assert slope[place] == pytest.approx((above - below) / 2e-6, rel=1e-5)
