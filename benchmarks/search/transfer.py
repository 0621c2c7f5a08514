"""What complete records of other devices are worth: ``python -m benchmarks.search.transfer``.

The convolution space was measured on four GPUs. For every source and target, and for each target
with all others as sources: the evaluations until the first point within 5 % of the target's best,

* ``order``: points are tried in the order of their mean log-slowdown on the sources;
* ``residual``: a Gaussian process learns how far the target is from that mean, and the point of the
  most expected improvement is next: where the sources mislead, it notices.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.search.flat import Flat
from benchmarks.search.gp_peer import improvement, scaled
from benchmarks.search.runs import space, space_names
from benchmarks.search.summary import WITHIN
from numpy.typing import NDArray

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.cli.output import print_table
from wattune.schedules.target import Target

Floats = NDArray[np.float64]

FAMILY = "convolution_milo_"
# Failures, and whatever is slower than this, count as this much slower than the best.
SLOWEST = 50.0
# Evaluations after which a search is given up.
BUDGET = 150
# Fitted points before the process's lengths are, and again after so many more.
FIRST_FIT, REFIT = 6, 5


def slowdowns() -> tuple[Floats, dict[str, Floats]]:
    """Return the points, scaled, [n, knobs], and ln(cost / best) on each device, [n]."""
    names = [name for name in space_names() if name.startswith(FAMILY)]
    flat = Flat.of(space(names[0]))
    schedules = list(flat.schedules.values())
    found = {}
    for name in names:
        recorded = space(name)
        costs = recorded.costs(schedules) / recorded.optimum()
        found[name.removeprefix(FAMILY)] = np.log(np.minimum(costs, SLOWEST))
    return scaled(flat), found


def by_order(prior: Floats, target: Floats) -> int:
    """Return the evaluations that the plain order needs."""
    order = np.argsort(prior, kind="stable")
    return 1 + int(np.argmax(target[order] <= np.log1p(WITHIN)))


def by_residual(points: Floats, prior: Floats, target: Floats) -> int | None:
    """Return the evaluations that the corrected order needs; None beyond the budget."""
    taken = [int(np.argmin(prior))]
    kernel: Any = None
    while target[taken[-1]] > np.log1p(WITHIN):
        if len(taken) == BUDGET:
            return None
        refit = len(taken) >= FIRST_FIT and (len(taken) - FIRST_FIT) % REFIT == 0
        process = _process(kernel, points.shape[1], refit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process.fit(points[taken], (target - prior)[taken])
            left = np.setdiff1d(np.arange(len(points)), taken)
            mean, deviation = process.predict(points[left], return_std=True)
        kernel = process.kernel_
        best = float(target[taken].min())
        taken.append(int(left[np.argmax(improvement(mean + prior[left], deviation, best))]))
    return len(taken)


def _process(kernel: Any, knobs: int, refit: bool) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    first = (
        ConstantKernel(0.1, (1e-3, 10)) * Matern(np.ones(knobs), (0.1, 30), nu=2.5)
        + ConstantKernel(0.1, (1e-3, 10))
        + WhiteKernel(1e-3, (1e-5, 0.1))
    )
    return GaussianProcessRegressor(kernel or first, optimizer="fmin_l_bfgs_b" if refit else None)


def compare(
    points: Floats, devices: dict[str, Floats], sources: Sequence[str], target: str
) -> dict[str, Any]:
    """Return what both need to find a good point of the target."""
    prior = np.mean([devices[name] for name in sources], axis=0)
    return {
        "sources": list(sources),
        "target": target,
        "correlation": float(np.corrcoef(prior, devices[target])[0, 1]),
        "order": by_order(prior, devices[target]),
        "residual": by_residual(points, prior, devices[target]),
    }


def main() -> None:
    """Compare on every pair, and on all others for each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    points, devices = slowdowns()
    pairs = [([source], target) for source, target in permutations(devices, 2)]
    alls = [([name for name in devices if name != target], target) for target in devices]
    rows = [compare(points, devices, *case) for case in [*pairs, *alls]]
    print_table(
        ["from", "to", ">correlation", ">order", ">residual"],
        [
            [
                ", ".join(row["sources"]),
                row["target"],
                f"{row['correlation']:.3f}",
                row["order"],
                row["residual"] or f">{BUDGET}",
            ]
            for row in rows
        ],
        f"evaluations to within {WITHIN:.0%} of the target's best",
    )
    if given.json:
        machine = describe_machine(Target.native())
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
