from __future__ import annotations

import sys

import numpy as np
import pytest
from tests.cost_models.made_up import World

from wattune.cost_models import cost_model
from wattune.cost_models.evaluate import evaluate
from wattune.cost_models.mlp_model import MLPModel
from wattune.cost_models.networks import Networks, forward, rank_loss, require_torch
from wattune.errors import MissingDependencyError


def test_rank_loss_by_hand() -> None:
    torch = require_torch()
    target, weight = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([[1.0, 0.5, 0.2]])
    group = torch.tensor([0, 0, 1])
    # Of one group is the first pair alone; both are predicted alike.
    same = rank_loss(torch.zeros(1, 3), target, weight, group)
    assert float(same) == pytest.approx(np.log(2.0))
    right = rank_loss(torch.tensor([[0.0, 2.0, 0.0]]), target, weight, group)
    wrong = rank_loss(torch.tensor([[2.0, 0.0, 0.0]]), target, weight, group)
    assert float(right) == pytest.approx(np.log(1 + np.exp(-2.0)), rel=1e-5)
    assert float(wrong) == pytest.approx(np.log(1 + np.exp(2.0)), rel=1e-5)
    # A pair counts by how far apart its weights are, and not at all where one is not shown: of
    # gains 0.5 for (1, 2), 0.8 for (1, 3) and 0.3 for (2, 3) only those of pairs of one group.
    together = torch.zeros(3, dtype=torch.int64)
    output = torch.tensor([[2.0, 0.0, 0.0]])
    losses = {2.0: 0.5 + 0.8, 0.0: 0.3}
    mean = sum(gain * np.log(1 + np.exp(x)) for x, gain in losses.items()) / 1.6
    assert float(rank_loss(output, target, weight, together)) == pytest.approx(mean, rel=1e-5)
    hidden = torch.tensor([[1.0, 0.0, 0.2]])
    left = rank_loss(output, target, hidden, together)
    assert float(left) == pytest.approx(np.log(1 + np.exp(2.0)), rel=1e-5)


def test_absent_numbers_and_constant_columns_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((120, 4)).astype(np.float32)
    matrix[:, 1] = 7.0
    labels = np.sin(3 * matrix[:, 0].astype(np.float64))
    matrix[::3, 2] = np.nan
    matrix[:, 3] = np.nan
    found = Networks.fit(matrix[:80], labels[:80], np.ones(80), ["a"] * 80, 3, 0)
    assert found.scaling.columns.tolist() == [0, 2]
    predicted, std = found.predict(matrix[80:])
    assert np.isfinite(predicted).all() and (std > 0).all()
    assert np.sqrt(np.mean((predicted - labels[80:]) ** 2)) < 0.3 * labels.std()
    # Far outside of what was seen the prediction stays near what was seen.
    far = np.full((1, 4), 1e6, np.float32)
    assert abs(found.predict(far)[0][0]) < 10 * np.abs(labels).max()
    assert found.predict(matrix[:0])[0].shape == (0,)


def test_members_were_not_shown_their_share() -> None:
    rng = np.random.default_rng(0)
    matrix, labels = rng.random((40, 3)).astype(np.float32), rng.normal(size=40)
    found = Networks.fit(matrix, labels, np.ones(40), ["a"] * 40, 4, 0)
    guesses = forward(found.layers, found.scaling.apply(matrix)) * found.spread
    assert guesses.shape == (4, 40)
    share = np.random.default_rng(0).permutation(40) % 4
    error = (guesses - labels) ** 2
    blind = np.mean([error[share[at], at] for at in range(40)])
    shown = np.mean([error[m, at] for at in range(40) for m in range(4) if m != share[at]])
    # Noise can be learned by heart, not foretold.
    assert blind > 2 * shown


def test_the_network_orders_what_it_has_not_seen(world: World) -> None:
    records = world.records(300, energy=True)
    (trial,) = evaluate(lambda: cost_model("mlp"), records, train=96)
    assert trial.accuracy.pairwise >= 0.85
    assert trial.accuracy.energy_skill is not None and trial.accuracy.energy_skill >= 0.8
    assert 0.5 <= trial.accuracy.within_1 <= 0.95


def test_a_missing_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    require_torch.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"torch, which is not installed: pip"):
            MLPModel()
    finally:
        require_torch.cache_clear()
