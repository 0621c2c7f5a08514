"""The learners of `benchmarks.efficacy`: trees in full, trees continued, a network in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models import efficacy
from wattune.cost_models.boosting import COMMON, REGRESSION, require_xgboost
from wattune.cost_models.efficacy import Efficacy, Floats, Indices
from wattune.cost_models.examples import speed_weights
from wattune.cost_models.matrix import Rows
from wattune.cost_models.network_efficacy import network_efficacy
from wattune.cost_models.networks import Scaling, one_thread, require_torch
from wattune.cost_models.tree_efficacy import tree_efficacy

LEARNERS = ("trees", "continued", "network")
# Share of the records that a selection keeps; folds of trees that are continued without an order.
SHARE, FOLDS = 0.5, 3
# The network's passes over the data, each in the same order.
EPOCHS, BATCH, RATE, HIDDEN = 20, 24, 5e-3, 48


@dataclass(frozen=True)
class Set:
    """A table: features [n, columns], ln(latency) and its standard error [n]."""

    name: str
    rows: Any
    latency: Floats
    error: Floats


@dataclass(frozen=True)
class Problem:
    """Records to learn from, those of another device first, and held-out ones to rank."""

    matrix: Rows
    labels: Floats
    weights: Floats
    noise: Floats
    own: NDArray[np.bool_]
    held_matrix: Rows
    held_latency: Floats
    held_error: Floats

    @classmethod
    def of(
        cls,
        table: Set,
        shown: Indices,
        held_out: Indices,
        source: Set | None = None,
        taken: Indices | None = None,
    ) -> Self:
        """Split a table, and put records of another one before its own."""
        parts = [(table, shown, "own")]
        if source is not None and taken is not None:
            parts.insert(0, (source, taken, "source"))
        latency = np.concatenate([each.latency[at] for each, at, _ in parts])
        names = [name for _, at, name in parts for _ in at]
        weights = speed_weights(latency, names)
        own = np.array([name == "own" for name in names])
        # As in the model: a task has its own level.
        labels = latency.copy()
        for mine in {True, False} & set(own.tolist()):
            at = own == mine
            labels[at] -= np.average(latency[at], weights=weights[at])
        return cls(
            np.concatenate([each.rows[at] for each, at, _ in parts]),
            labels,
            weights,
            np.concatenate([each.error[at] for each, at, _ in parts]),
            own,
            table.rows[held_out],
            table.latency[held_out],
            table.error[held_out],
        )

    def __hash__(self) -> int:
        """Tell problems apart by identity: scores are remembered while one is worked on."""
        return id(self)

    @property
    def target(self) -> Indices:
        """Return the newest and the fastest of the records of the device itself."""
        return efficacy.target_of(self.labels, [str(mine) for mine in self.own])


_remembered: dict[tuple[int, str, int], tuple[Problem, Efficacy]] = {}


def scores_of(learner: str, problem: Problem, arm: str, seed: int) -> Floats:
    """Return an arm's scores by the kind of learner that will use them."""
    kind = "network" if learner == "network" else "trees"
    key = (id(problem), kind, seed)
    if key not in _remembered:
        if len(_remembered) > 1:
            _remembered.clear()
        score = network_efficacy if kind == "network" else tree_efficacy
        found = score(
            problem.matrix, problem.labels, problem.weights, problem.target, problem.noise, seed
        )
        _remembered[key] = (problem, found)
    return _remembered[key][1].score(arm)


def trained(learner: str, problem: Problem, scores: Floats | None, use: str, seed: int) -> Floats:
    """Train with scores used as weights, selection or order; return the held-out prediction."""
    rng = np.random.default_rng(seed)
    order: Indices = rng.permutation(len(problem.labels))
    weights = problem.weights
    if scores is not None and use == "weight":
        weights = weights * _of_source(problem, efficacy.weights(scores))
    elif scores is not None and use == "top-r":
        kept = _kept(problem, scores)
        order = order[np.isin(order, kept)]
    elif scores is not None and use != "none":
        order = efficacy.ordered(scores, use, rng)
    fit = {"trees": _trees, "continued": _continued, "network": _network}[learner]
    folds = int(use.removeprefix("folded")) if use.startswith("folded") else FOLDS
    return fit(problem, order, weights, folds, seed)


def _of_source(problem: Problem, weights: Floats) -> Floats:
    """Leave the device's own records as they are where there are others."""
    return weights if problem.own.all() else np.where(problem.own, 1.0, weights)


def _kept(problem: Problem, scores: Floats) -> Indices:
    """Return the better half; of another device's records where there are some."""
    if problem.own.all():
        return efficacy.selected(scores, SHARE)
    source = np.flatnonzero(~problem.own)
    chosen = source[efficacy.selected(scores[source], SHARE)]
    return np.concatenate([chosen, np.flatnonzero(problem.own)])


def _boost(problem: Problem, parts: Sequence[Indices], weights: Floats, seed: int) -> Floats:
    """Boost on one part after the other; each adds its share of the trees."""
    xgboost = require_xgboost()
    settings = {**COMMON, **REGRESSION, "seed": seed, "base_score": 0.0}
    rounds = settings.pop("rounds") // len(parts)
    booster = None
    for at in parts:
        data = xgboost.DMatrix(
            problem.matrix[at], label=problem.labels[at], weight=weights[at], nthread=1
        )
        booster = xgboost.train(settings, data, rounds, xgb_model=booster)
    assert booster is not None
    return np.asarray(booster.inplace_predict(problem.held_matrix), np.float64)


def _trees(p: Problem, order: Indices, weights: Floats, folds: int, seed: int) -> Floats:
    return _boost(p, [order], weights, seed)


def _continued(p: Problem, order: Indices, weights: Floats, folds: int, seed: int) -> Floats:
    return _boost(p, np.array_split(order, folds), weights, seed)


def _network(p: Problem, order: Indices, weights: Floats, folds: int, seed: int) -> Floats:
    """Train a network on minibatches in this order, the same one in every pass."""
    torch = require_torch()
    scaling = Scaling.fit(p.matrix)
    spread = max(float(p.labels.std()), 1e-9)
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = torch.nn.Sequential(
            torch.nn.Linear(len(scaling.columns), HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, 1),
        )
        inputs = torch.from_numpy(scaling.apply(p.matrix))
        targets = torch.tensor(p.labels / spread, dtype=torch.float32)
        shares = torch.tensor(weights / weights.mean(), dtype=torch.float32)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE, weight_decay=1e-2)
        for _ in range(EPOCHS):
            for at in torch.from_numpy(order.copy()).split(BATCH):
                loss = (shares[at] * (layers(inputs[at])[:, 0] - targets[at]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            found = layers(torch.from_numpy(scaling.apply(p.held_matrix)))[:, 0]
    return np.asarray(found.numpy(), np.float64) * spread
