"""Scores of training records: by hand, against plain loops, and on records known to be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.cost_models.made_up import World

from wattune.cost_models import cost_model, efficacy
from wattune.cost_models.boosting import REGRESSION, Trees
from wattune.cost_models.efficacy import ARMS, ORDERS, Efficacy, ordered, target_of
from wattune.cost_models.matrix import Rows
from wattune.cost_models.network_efficacy import (
    _bend,
    _mean_loss,
    _start,
    network_efficacy,
    sample_gradients,
)
from wattune.cost_models.networks import require_torch
from wattune.cost_models.tree_efficacy import _inner, tree_efficacy
from wattune.errors import UnknownNameError

SCORERS = {"trees": tree_efficacy, "network": network_efficacy}


def data(count: int = 160) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = rng.random((count, 4)).astype(np.float32)
    return matrix, (2 * matrix[:, 0] + np.sin(4 * matrix[:, 1])).astype(np.float64)


@pytest.mark.parametrize("name", SCORERS)
def test_wrong_labels_score_less(name: str) -> None:
    matrix, labels = data()
    wrong = np.arange(0, 120, 6)
    labels[wrong] = -labels[wrong] + 3.0
    target = np.arange(130, 160)
    found = SCORERS[name](matrix, labels, np.ones(160), target, np.zeros(160))
    right = np.setdiff1d(np.arange(120), wrong)
    for arm in ("quality", "lqs"):
        scores = found.score(arm)
        assert scores[wrong].mean() < scores[right].mean() - 0.5 * scores[:120].std(), arm


@pytest.mark.parametrize("name", SCORERS)
def test_noise_takes_from_the_score(name: str) -> None:
    matrix, labels = data()
    target, noise = np.arange(130, 160), np.zeros(160)
    clean = SCORERS[name](matrix, labels, np.ones(160), target, noise)
    noise[:40] = labels.std()
    found = SCORERS[name](matrix, labels, np.ones(160), target, noise)
    assert np.abs(found.lqs[:40]).max() < 0.02 * np.abs(clean.lqs[:40]).max()
    np.testing.assert_allclose(found.lqs[40:], clean.lqs[40:])


def test_leaf_kernel_by_hand() -> None:
    # Leaves {0, 1, 2} and {3}; the target is 1 and 2.
    leaf, residual = np.array([0, 0, 0, 1]), np.array([2.0, 1.0, -3.0, 5.0])
    assert _inner(leaf, residual, np.array([1, 2])).tolist() == pytest.approx(
        [2 * (1 - 3) / 3, 1 * (1 - 3) / 3, -3 * (1 - 3) / 3, 0.0]
    )


def test_gradients_and_curvature_are_those_of_plain_loops() -> None:
    torch = require_torch()
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(6, 3)), dtype=torch.float32)
    y = torch.tensor(rng.normal(size=6), dtype=torch.float32)
    start = _start(3, rng)
    found = sample_gradients(start, x, y)
    for at in range(6):
        leaves = [p.clone().requires_grad_() for p in start]
        _mean_loss(x[at : at + 1], y[at : at + 1])(leaves).backward()
        alone = torch.cat([p.grad.flatten() for p in leaves])
        torch.testing.assert_close(found[at], alone)
    direction = torch.tensor(rng.normal(size=found.shape[1]), dtype=torch.float32)
    # The Hessian times a direction is how much the gradient changes along it.
    step, parts = 1e-2, direction.split([p.numel() for p in start])
    slopes = []
    for sign in (1, -1):
        moved = tuple(p + sign * step * d.view_as(p) for p, d in zip(start, parts, strict=True))
        slopes.append(sample_gradients(moved, x, y).mean(dim=0))
    expected = (slopes[0] - slopes[1]) / (2 * step)
    error = (_bend(start, x, y, direction) - expected).norm() / expected.norm()
    # The difference quotient's own error: third derivatives times step squared.
    assert float(error) < 0.02


def test_the_target_is_the_newest_and_the_fastest_of_their_group() -> None:
    latency = np.array([1.0, 9.0, *np.linspace(2, 5, 20)])
    groups = ["other", *["a"] * 21]
    # Of the 21 in group "a" the newest 8 are 14 to 21, the fastest tenth 2 and 3.
    assert target_of(latency, groups).tolist() == [2, 3, *range(14, 22)]


def test_weights_selection_and_orders_by_hand() -> None:
    scores = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 0.0])
    assert efficacy.weights(np.ones(4)).tolist() == [1.0] * 4
    found = efficacy.weights(scores)
    assert found.min() == pytest.approx(max(0.25, 1 + 0.5 * (0 - 2.5) / scores.std()))
    assert efficacy.selected(scores, 0.5).tolist() == [0, 3, 4]
    rng = np.random.default_rng(0)
    assert ordered(scores, "ascending", rng).tolist() == [5, 1, 2, 0, 4, 3]
    assert ordered(scores, "descending", rng).tolist() == [3, 4, 0, 2, 1, 5]
    # Ascending ranks 0, 3 | 1, 4 | 2, 5.
    assert ordered(scores, "folded3", rng).tolist() == [5, 0, 1, 4, 2, 3]
    for order in ORDERS:
        assert sorted(ordered(np.zeros(50), order, rng)) == list(range(50))
    assert ordered(np.zeros(50), "ascending", rng).tolist() != list(range(50))


def test_unknown_arms_and_orders_are_refused() -> None:
    nothing = Efficacy(*np.zeros((4, 3)))
    assert [nothing.score(arm).tolist() for arm in ARMS] == [[0.0] * 3] * len(ARMS)
    with pytest.raises(UnknownNameError, match="unknown training-data score 'luck'"):
        nothing.score("luck")
    with pytest.raises(UnknownNameError, match="unknown training order 'zigzag'"):
        ordered(np.zeros(3), "zigzag", np.random.default_rng(0))


def test_trees_trained_on_everything_know_no_order() -> None:
    matrix, labels = data()
    order = ordered(labels, "folded3", np.random.default_rng(0))
    one = Trees.fit(REGRESSION, matrix, labels, np.ones(160), 1, 0)
    other = Trees.fit(REGRESSION, matrix[order], labels[order], np.ones(160), 1, 0)
    # Sums of gradients are rounded in another order.
    np.testing.assert_allclose(one.predict(matrix)[0], other.predict(matrix)[0], atol=1e-4)


def test_a_model_weights_its_records_only_when_it_is_told_to(world: World) -> None:
    records, candidates = world.records(60), world.candidates(40)
    found = {}
    for arm in ("none", "lqs"):
        model = cost_model("xgboost", efficacy=arm)
        model.update(records)
        again = cost_model("xgboost")
        again.from_state(json.loads(json.dumps(model.to_state())))
        found[arm] = model.predict(candidates).latency
        np.testing.assert_array_equal(again.predict(candidates).latency, found[arm])
    plain = cost_model("xgboost")
    plain.update(records)
    np.testing.assert_array_equal(plain.predict(candidates).latency, found["none"])
    assert (found["lqs"] != found["none"]).any()
    with pytest.raises(UnknownNameError, match="unknown training-data score 'luck'"):
        cost_model("xgboost", efficacy="luck")
