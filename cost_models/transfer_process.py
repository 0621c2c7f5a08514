"""A Gaussian process of one task that starts from what other tasks cost.

    ln(cost) = level + sum of w_i x source_i + g(knobs) + noise

``source_i`` is what the i-th source says of a point: its ln(slowdown) there. Before anything is
measured every w_i is expected to be 1 / sources: the order of the mean slowdown. Measurements say
which sources are alike (w, between 0 and 1: a source may be useless, but is not taken to be the
wrong way round) and where all of them mislead (g, a Matern 5/2 process on the knobs). Unlike
`GaussianProcess`, which knows no scale before it has seen labels, this one expects one: slowdowns
are ratios, against which a handful of measurements can be held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.gaussian_process import matern, require_scipy, squared_distances

Floats = NDArray[np.float64]

# Standard deviations of the logarithms of what is fitted, and of the sum of all w.
_WEIGHT_STD, _SPREAD_STD, _NOISE_STD, _TRUST_STD = 0.7, 2.5, 1.2, 0.5
# Weights are expected where the sources have them by Student's t of so many degrees of freedom, not
# by a normal distribution: mostly a knob matters as much as there, but one may do so here alone.
_TAIL = 2.0
_WEIGHTS, _SPREADS, _NOISES = (-9.0, 6.0), (-9.0, 4.0), (-14.0, -1.0)
# The level is unknown: its variance is far above that of labels, which are centred.
_LEVEL = 100.0
_ITERATIONS = 30


@dataclass(frozen=True)
class TransferProcess:
    """Hyperparameters; rows are columns of knobs, then one column a source.

    ``groups`` [columns of knobs] and ``weights`` as in `GaussianProcess`; ``trust`` [sources]: w;
    ``spread``: the variance of g; ``noise``: that of a measurement. All of ln(cost).
    """

    groups: NDArray[np.int64]
    weights: Floats
    trust: Floats
    noise: float = 1e-3
    spread: float = 0.05

    def fit(self, rows: Floats, labels: Floats) -> TransferProcess:
        """Return the most probable process given labels [n] at rows; this one is the prior."""
        knobs, sources = self._split(rows)
        knob_count, count = len(self.weights), len(self.trust)
        columns = [knobs[:, self.groups == at] for at in range(knob_count)]
        squares = np.stack([squared_distances(part, part) for part in columns])
        first = np.append(np.log([*self.weights, self.spread, self.noise]), self.trust)
        widths = np.repeat(
            [_WEIGHT_STD, _SPREAD_STD, _NOISE_STD, _TRUST_STD / np.sqrt(count)],
            [knob_count, 1, 1, count],
        )

        def loss(at: Floats) -> tuple[float, Floats]:
            trust, away = at[-count:], (at - first) / widths
            rest = labels - sources @ trust
            value, slope, solved = _likelihood(np.exp(at[:-count]), squares, rest - rest.mean())
            by_trust = -(sources - sources.mean(axis=0)).T @ solved
            unlikely, by_away = _unlikely(away, knob_count)
            return value + unlikely, np.append(slope, by_trust) + by_away / widths

        bounds = [_WEIGHTS] * knob_count + [_SPREADS, _NOISES] + [(0.0, 1.0)] * count
        options = {"maxiter": _ITERATIONS}
        found = (
            require_scipy()
            .optimize.minimize(
                loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options
            )
            .x
        )
        *weights, spread, noise = np.exp(found[:-count]).tolist()
        return replace(
            self, weights=np.array(weights), spread=spread, noise=noise, trust=found[-count:]
        )

    def predict(self, rows: Floats, labels: Floats, asked: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at ``asked`` [m, columns], given labels at rows."""
        linalg = require_scipy().linalg
        (knobs, sources), (other_knobs, theirs) = self._split(rows), self._split(asked)
        rest = labels - sources @ self.trust
        kernel = self._kernel(knobs, knobs)
        kernel[np.diag_indices_from(kernel)] += self.noise
        factor = np.linalg.cholesky(kernel)
        cross = self._kernel(knobs, other_knobs)
        solved = linalg.cho_solve((factor, True), rest - rest.mean())
        half = linalg.solve_triangular(factor, cross, lower=True, check_finite=False)
        left = self.spread + _LEVEL - np.einsum("ij,ij->j", half, half)
        mean = rest.mean() + solved @ cross + theirs @ self.trust
        return mean, np.sqrt(np.maximum(left, 1e-9))

    def _split(self, rows: Floats) -> tuple[Floats, Floats]:
        return rows[:, : len(self.groups)], rows[:, len(self.groups) :]

    def _kernel(self, knobs: Floats, others: Floats) -> Floats:
        scale = np.sqrt(self.weights[self.groups])
        near: Floats = matern(squared_distances(knobs * scale, others * scale))[0]
        return self.spread * near + _LEVEL


def _unlikely(away: Floats, tailed: int) -> tuple[float, Floats]:
    """Return -ln(density) of standardised values, by Student's t of the first, and its slope."""
    heavy, normal = away[:tailed], away[tailed:]
    value = 0.5 * (_TAIL + 1) * np.log1p(heavy**2 / _TAIL).sum() + 0.5 * normal @ normal
    return float(value), np.append((_TAIL + 1) * heavy / (_TAIL + heavy**2), normal)


def _likelihood(at: Floats, squares: Floats, labels: Floats) -> tuple[float, Floats, Floats]:
    """Return -ln(likelihood), its slope by ln(weights, spread, noise), and by the labels, [n]."""
    weights, (spread, noise) = at[:-2], at[-2:]
    near, slope = matern(np.tensordot(weights, squares, 1))
    kernel = spread * near + _LEVEL
    kernel[np.diag_indices_from(kernel)] += noise
    factor = np.linalg.cholesky(kernel)
    inverse = require_scipy().linalg.cho_solve((factor, True), np.eye(len(labels)))
    solved = inverse @ labels
    value = 0.5 * labels @ solved + np.log(np.diag(factor)).sum()
    inner = 0.5 * (inverse - np.outer(solved, solved))
    by_weight = spread * weights * np.tensordot(squares, inner * slope, axes=([1, 2], [0, 1]))
    by_others = [spread * (inner * near).sum(), noise * np.trace(inner)]
    return float(value), np.append(by_weight, by_others), solved
