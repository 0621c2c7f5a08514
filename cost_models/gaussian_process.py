"""A Gaussian process for one task: few records, every column's relevance fitted to them.

Matern 5/2 on weighted distances (automatic relevance determination), and products of the columns
that labels may follow in a straight line: what another model expects, say. The weights and the
noise are the most probable ones under a prior that keeps most columns nearly irrelevant until the
records say otherwise; the level and the scale are solved for in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.errors import MissingDependencyError

Floats = NDArray[np.float64]

# Standard deviation of ln(weight) around what is expected, and the same of ln(noise variance),
# which is a share of the variance of what is learnt.
_WEIGHT_STD = 1.3
_NOISE, _NOISE_STD = 1e-3, 1.2
_LEAST_NOISE = 1e-6
_WEIGHTS, _NOISES = (-9.0, 6.0), (-14.0, 0.0)
_ITERATIONS = 30
# Below so many standard deviations the tail's formula is the more exact one.
_FAR = -8.0


@dataclass(frozen=True)
class GaussianProcess:
    """Hyperparameters: a weight for each group of columns, and the noise, both positive.

    ``groups`` [columns]: the group of a column; one-hot columns of a knob share one weight.
    ``trends``: the groups whose columns labels follow in a straight line, not by nearness.
    """

    groups: NDArray[np.int64]
    weights: Floats
    noise: float = _NOISE
    trends: frozenset[int] = frozenset()

    def fit(self, rows: Floats, labels: Floats) -> GaussianProcess:
        """Return the process fitted to rows [n, columns] and labels [n]; this one is the prior."""
        scipy = require_scipy()
        first = np.log(np.append(self.weights, self.noise))
        widths = np.append(np.full(len(self.weights), _WEIGHT_STD), _NOISE_STD)
        parts = self._parts(rows)
        linear = self._linear()
        centred = labels - labels.mean()
        scaled = centred / (centred.std() or 1.0)

        def loss(at: Floats) -> tuple[float, Floats]:
            value, slope = _likelihood(scipy, np.exp(at), parts, linear, scaled)
            away = (at - first) / widths
            return value + 0.5 * float(away @ away), slope + away / widths

        bounds = [_WEIGHTS] * len(self.weights) + [_NOISES]
        options = {"maxiter": _ITERATIONS}
        found = scipy.optimize.minimize(
            loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return replace(self, weights=np.exp(found[:-1]), noise=float(np.exp(found[-1])))

    def predict(self, rows: Floats, labels: Floats, asked: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at ``asked`` [m, columns], given labels at rows."""
        scipy = require_scipy()
        scale = np.sqrt(self.weights[self.groups])
        known, wanted = rows * scale, asked * scale
        kernel = self._kernel(known, known)
        kernel[np.diag_indices_from(kernel)] += self.noise + _LEAST_NOISE
        factor = np.linalg.cholesky(kernel)
        ones = scipy.linalg.cho_solve((factor, True), np.ones(len(labels)))
        level = float(ones @ labels / ones.sum())
        solved = scipy.linalg.cho_solve((factor, True), labels - level)
        variance = max(float((labels - level) @ solved) / len(labels), 1e-12)
        cross = self._kernel(known, wanted)
        half = scipy.linalg.solve_triangular(factor, cross, lower=True, check_finite=False)
        slope = wanted[:, self._linear()[self.groups]]
        before = 1 + np.einsum("ij,ij->i", slope, slope)
        left = np.maximum(before - np.einsum("ij,ij->j", half, half), 1e-9)
        return level + solved @ cross, np.sqrt(variance * left)

    def left_out(self, rows: Floats, labels: Floats) -> Floats:
        """Return the error at each of rows [n, columns] of the process without it, [n].

        The level is that of all; Rasmussen and Williams, Gaussian Processes, equation 5.12.
        """
        scale = np.sqrt(self.weights[self.groups])
        kernel = self._kernel(rows * scale, rows * scale)
        kernel[np.diag_indices_from(kernel)] += self.noise + _LEAST_NOISE
        inverse = np.linalg.inv(kernel)
        ones = inverse.sum(axis=1)
        level = float(ones @ labels / ones.sum())
        found: Floats = inverse @ (labels - level) / np.diag(inverse)
        return found

    def _linear(self) -> NDArray[np.bool_]:
        """Return which groups are trends, [groups]."""
        return np.isin(np.arange(len(self.weights)), list(self.trends))

    def _parts(self, rows: Floats) -> Floats:
        """Return squared distances of rows by group, or products, [groups, n, n]."""
        columns = [rows[:, self.groups == at] for at in range(len(self.weights))]
        return np.stack(
            [
                part @ part.T if at in self.trends else squared_distances(part, part)
                for at, part in enumerate(columns)
            ]
        )

    def _kernel(self, one: Floats, other: Floats) -> Floats:
        """Return the covariance of weighted rows, [n, m]."""
        trend = self._linear()[self.groups]
        near = matern(squared_distances(one[:, ~trend], other[:, ~trend]))[0]
        return near + one[:, trend] @ other[:, trend].T if trend.any() else near


def log_expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Return ln of how much the least label is expected to fall below ``best``, [n].

    The logarithm, because far from the best the improvement itself is 0 in floating point and
    would no longer say which point is nearest to being one.
    """
    z = (best - mean) / std
    near = np.maximum(z, _FAR)
    density = np.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
    direct = np.log(near * require_scipy().special.ndtr(near) + density)
    far = np.minimum(z, _FAR)
    # z Phi(z) + phi(z) -> phi(z) / z^2, to a share of about 3 / z^2.
    tail = -0.5 * far * far - 2 * np.log(-far) - 0.5 * math.log(2 * math.pi)
    found: Floats = np.log(std) + np.where(z > _FAR, direct, tail)
    return found


def _likelihood(
    scipy: Any, at: Floats, parts: Floats, linear: NDArray[np.bool_], labels: Floats
) -> tuple[float, Floats]:
    """Return -ln(likelihood) with level and scale solved for, and its slope by ln(parameters).

    ``parts`` [groups, n, n]: squared distances, or products where ``linear`` [groups].
    """
    count, weights, noise = len(labels), at[:-1], float(at[-1])
    near, slope = matern(np.tensordot(weights[~linear], parts[~linear], 1))
    kernel = near + np.tensordot(weights[linear], parts[linear], 1)
    kernel[np.diag_indices_from(kernel)] += noise + _LEAST_NOISE
    factor = np.linalg.cholesky(kernel)
    inverse = scipy.linalg.cho_solve((factor, True), np.eye(count))
    ones = inverse.sum(axis=1)
    away = labels - ones @ labels / ones.sum()
    solved = inverse @ away
    variance = float(away @ solved) / count
    value = 0.5 * count * np.log(variance) + np.log(np.diag(factor)).sum()
    inner = 0.5 * (inverse - np.outer(solved, solved) / variance)
    by_weight = np.empty(len(weights))
    by_weight[~linear] = np.tensordot(parts[~linear], inner * slope, axes=([1, 2], [0, 1]))
    by_weight[linear] = np.tensordot(parts[linear], inner, axes=([1, 2], [0, 1]))
    by_weight *= weights
    return float(value), np.append(by_weight, np.trace(inner) * noise)


def matern(squares: Floats) -> tuple[Floats, Floats]:
    """Return the kernel at squared distances, and its slope by them."""
    root = np.sqrt(5 * squares + 1e-12)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


def squared_distances(one: Floats, other: Floats) -> Floats:
    """Return squared distances between rows, [n, m]."""
    squares = (one * one).sum(axis=1)[:, None] + (other * other).sum(axis=1) - 2 * one @ other.T
    found: Floats = np.maximum(squares, 0.0)
    return found


def require_scipy() -> Any:
    """Return scipy with what is used of it; `MissingDependencyError` where there is none."""
    try:
        import scipy
        import scipy.linalg
        import scipy.optimize
        import scipy.special
    except ImportError as error:
        raise MissingDependencyError("scipy", "a Gaussian process") from error
    return scipy
