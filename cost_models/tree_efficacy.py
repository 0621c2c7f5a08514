"""Scores of training records for boosted trees, which have no parameters to take gradients of.

A tree's leaves stand in for them: within a leaf a record moves the prediction of the others by its
share of the leaf, so leaves are a kernel between records and residuals are the gradients.
"""

from __future__ import annotations

import numpy as np

from wattune.cost_models.boosting import COMMON, REGRESSION, require_xgboost, varying
from wattune.cost_models.efficacy import Efficacy, Floats, Indices
from wattune.cost_models.matrix import Rows

# Boosting rounds between two looks.
_STEP = 8
# Noise is at least this share of the labels' spread; errors below it count as learned.
_LEAST_NOISE = 0.01
_RATIOS = (0.2, 5.0)


def tree_efficacy(
    matrix: Rows,
    labels: Floats,
    weights: Floats,
    target: Indices,
    noise: Floats,
    seed: int = 0,
) -> Efficacy:
    """Score records [n] by boosting once and looking at residuals and leaves on the way.

    ``noise`` is the standard error of each label, ``target`` as `target_of` returns it.
    """
    xgboost = require_xgboost()
    settings = {**COMMON, **REGRESSION, "seed": seed, "base_score": 0.0}
    rounds = settings.pop("rounds")
    shown = np.ascontiguousarray(matrix[:, varying(matrix)])
    data = xgboost.DMatrix(shown, label=labels, weight=weights, nthread=1)
    booster = xgboost.train(settings, data, rounds)
    leaves = np.atleast_2d(booster.predict(data, pred_leaf=True).astype(np.int64).T).T
    stages = range(0, rounds, _STEP)
    residuals = np.stack([labels - _until(booster, data, m) for m in [*stages, rounds]])
    least = max(_LEAST_NOISE * float(labels.std()), np.finfo(float).tiny)
    floor = np.maximum(noise, least)
    # The value at a stage over the one after it, as in gradient norms.
    ratios = np.clip(np.abs(residuals[:-1]) / (np.abs(residuals[1:]) + floor), *_RATIOS)
    inner = np.stack(
        [_inner(leaves[:, m], r, target) for m, r in zip(stages, residuals, strict=False)]
    )
    scale = np.linalg.norm(residuals[:-1], axis=0) * np.linalg.norm(residuals[:-1, target])
    cosine = inner / np.maximum(scale, least**2)
    quality, learnability = cosine.sum(axis=0), ratios.mean(axis=0)
    certain = 1 / (1 + (noise / least) ** 2)
    return Efficacy(learnability, quality, inner.sum(axis=0), learnability * quality * certain)


def _until(booster: object, data: object, rounds: int) -> Floats:
    """Return the prediction of the first ``rounds`` trees, [n]."""
    if not rounds:
        # To XGBoost a range of (0, 0) means all trees.
        return np.zeros(data.num_row())  # type: ignore[attr-defined]
    found = booster.predict(data, iteration_range=(0, rounds))  # type: ignore[attr-defined]
    return np.asarray(found, np.float64)


def _inner(leaf: Indices, residual: Floats, target: Indices) -> Floats:
    """Return each record's residual times the target's within its leaf, over the leaf's size."""
    count = int(leaf.max()) + 1
    sizes = np.bincount(leaf, minlength=count)
    wanted = np.bincount(leaf[target], weights=residual[target], minlength=count)
    return residual * wanted[leaf] / sizes[leaf]
