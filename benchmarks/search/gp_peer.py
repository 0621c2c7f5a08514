"""The yardstick: a plain Gaussian process with expected improvement, as any textbook has it.

Matern 5/2 with one length a knob, on ln(cost); 20 random points first; expected improvement over
every point that is left. A failure counts as the worst cost seen.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from benchmarks.search.flat import Flat
from numpy.typing import NDArray

from wattune.compiler.replay import Recording

Floats = NDArray[np.float64]

FIRST = 20
# The lengths are fitted anew after so many more evaluations; the process itself after each.
REFIT = 10


def run(recording: Recording, strategy: str, budget: int, seed: int) -> tuple[list[float], float]:
    """Return the cost of each distinct evaluation (infinite: failed), and the seconds of one."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    flat = Flat.of(recording)
    points = scaled(flat)
    costs = np.asarray(recording.costs(list(flat.schedules.values())), np.float64)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    taken = [int(at) for at in rng.permutation(len(points))[:FIRST]]
    kernel = ConstantKernel() * Matern(np.ones(points.shape[1]), nu=2.5) + WhiteKernel(1e-3)
    while len(taken) < min(budget, len(points)):
        labels = _labels(costs[taken])
        refit = (len(taken) - FIRST) % REFIT == 0
        process = GaussianProcessRegressor(
            kernel, optimizer="fmin_l_bfgs_b" if refit else None, normalize_y=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process.fit(points[taken], labels)
            left = np.setdiff1d(np.arange(len(points)), taken)
            mean, deviation = process.predict(points[left], return_std=True)
        kernel = process.kernel_
        taken.append(int(left[np.argmax(improvement(mean, deviation, float(labels.min())))]))
    seconds = time.perf_counter() - start
    return [float(c) for c in costs[taken[:budget]]], seconds / len(taken)


def scaled(flat: Flat) -> Floats:
    """Return the points by their places among each parameter's values, from 0 to 1."""
    columns = []
    for at, values in enumerate(flat.parameters.values()):
        if len(values) > 1:
            places = {value: place for place, value in enumerate(values)}
            columns.append([places[point[at]] / (len(values) - 1) for point in flat.schedules])
    return np.array(columns, np.float64).T


def _labels(costs: Floats) -> Floats:
    finite = costs[np.isfinite(costs)]
    return np.log(np.where(np.isfinite(costs), costs, finite.max() if finite.size else 1.0))


def improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Return the expected improvement over the best cost, [n]; all are logarithms."""
    from scipy.stats import norm

    gap = best - mean
    z = gap / np.maximum(deviation, 1e-12)
    found: Floats = gap * norm.cdf(z) + deviation * norm.pdf(z)
    return found
