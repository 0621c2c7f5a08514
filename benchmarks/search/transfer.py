"""What complete records of other devices are worth: ``python -m benchmarks.search.transfer``.

The convolution space was measured on four GPUs. For every source and target, and for each target
with all others as sources: the evaluations until the first point within 5 % of the target's best,

* ``order``: points are tried in the order of their mean log-slowdown on the sources;
* ``transfer``: the Bayesian search that starts from the sources (`wattune.compiler.search.warm`);
* ``alone``: the same search without them.

Medians over seeds. Rows are kept as they come; a stopped run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.search.runs import space, space_names
from benchmarks.search.summary import WITHIN, median
from numpy.typing import NDArray

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import known_rows, results_file, write_rows
from wattune.compiler.cli.output import print_table
from wattune.compiler.replay import replay
from wattune.schedules.target import Target

Floats = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results"
FAMILY = "convolution_milo_"
# In the order, failures and whatever is slower than this count as this much slower than the best.
SLOWEST = 50.0
# Trials of a first search: most find a good point in so many. Only where one does not, it is run
# again to the budget, which takes far longer.
SHORT = 40


def slowdowns(names: Sequence[str]) -> dict[str, Floats]:
    """Return ln(cost / best) of all points on each device, [n]."""
    schedules = list(space(FAMILY + names[0]).rows)
    found = {}
    for name in names:
        recorded = space(FAMILY + name)
        costs = recorded.costs(schedules) / recorded.optimum()
        found[name] = np.log(np.minimum(costs, SLOWEST))
    return found


def by_order(sources: Sequence[Floats], target: Floats) -> int:
    """Return the evaluations that the plain order needs."""
    order = np.argsort(np.mean(sources, axis=0), kind="stable")
    return 1 + int(np.argmax(target[order] <= np.log1p(WITHIN)))


def searched(sources: Sequence[str], target: str, budget: int, seeds: int) -> list[int | None]:
    """Return the evaluations that a search needs with each seed; None beyond the budget."""
    known = [space(FAMILY + name) for name in sources]
    found: list[int | None] = []
    for seed in range(seeds):
        # Most searches are short, and what comes after the first good point is not asked for.
        for trials in (min(SHORT, budget), budget):
            run = replay(space(FAMILY + target), "bayesian", trials, seed, transfer=known)
            if (count := run.evaluations_to(WITHIN)) is not None:
                break
        found.append(count)
    return found


def middle(counts: Sequence[int | None]) -> float | None:
    """Return the median; None beyond the budget."""
    found = median([float("inf") if count is None else count for count in counts])
    return found if np.isfinite(found) else None


def compare(
    devices: dict[str, Floats], sources: Sequence[str], target: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Return what all need to find a good point of the target."""
    mean = np.mean([devices[name] for name in sources], axis=0)
    transfer = searched(sources, target, given.budget, given.seeds)
    return {
        **row_name(sources, target, given),
        "correlation": float(np.corrcoef(mean, devices[target])[0, 1]),
        "order": by_order([devices[name] for name in sources], devices[target]),
        "transfer": middle(transfer),
        "runs": transfer,
    }


def row_name(sources: Sequence[str], target: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what a row is found by."""
    problem = f"{', '.join(sources) or 'nothing'} to {target}"
    return {"problem": problem, "trials": given.budget, "seeds": given.seeds}


def cases(names: Sequence[str]) -> list[tuple[list[str], str]]:
    """Return sources and target: every pair, and all others for each target."""
    pairs = [([source], target) for source, target in permutations(names, 2)]
    return [*pairs, *(([n for n in names if n != target], target) for target in names)]


def main() -> None:
    """Compare on every pair, and on all others for each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=300)
    given = parser.parse_args()
    names = [n.removeprefix(FAMILY) for n in space_names() if n.startswith(FAMILY)]
    devices, machine = slowdowns(names), describe_machine(Target.native())
    path = results_file(RESULTS, "search-transfer", machine["device"])
    alone: dict[str, float | None] = {}
    for target in names:
        name = row_name([], target, given)
        if not known_rows(path, **name):
            runs = searched([], target, given.budget, given.seeds)
            write_rows(path, {"machine": machine}, [{**name, "alone": middle(runs), "runs": runs}])
        alone[target] = known_rows(path, **name)[0]["alone"]
    lines = []
    for sources, target in cases(names):
        name = row_name(sources, target, given)
        if not known_rows(path, **name):
            row = compare(devices, sources, target, given)
            write_rows(path, {"machine": machine}, [row])
            print(f"{row['problem']}: order {row['order']}, transfer {row['runs']}", flush=True)
        row = known_rows(path, **name)[0]
        figures = [row["order"], row["transfer"], alone[target]]
        counts = [f">{given.budget}" if f is None else f"{f:g}" for f in figures]
        lines.append([", ".join(sources), target, f"{row['correlation']:.3f}", *counts])
    print_table(
        ["from", "to", ">correlation", ">order", ">transfer", ">alone"],
        lines,
        f"evaluations to within {WITHIN:.0%} of the target's best",
    )


if __name__ == "__main__":
    main()
