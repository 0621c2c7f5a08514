"""Whether another kind of learner would know more: ``python -m benchmarks.learners [FILES]``.

Each learner sees the same features of the same 64 random points of a task and orders up to 1000
others; the figure is the share of pairs in the right order, the mean over seeds. What none of them
reaches is not in the records, or not in the features. ``model`` is the cost model in use: trees and
a Gaussian process, weighted by their errors. Needs the packages of ``bench-search``. To one file in
``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from benchmarks.compact_spaces import SPACES
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from wattune.compiler.accuracy import read_evidence
from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file
from wattune.compiler.cli.output import print_table
from wattune.cost_models.base import cost_model
from wattune.cost_models.boosting import REGRESSION, Trees
from wattune.cost_models.matrix import FeatureMatrix
from wattune.cost_models.metrics import pairwise_accuracy, ranks
from wattune.cost_models.task_process import TaskProcess
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target

Floats = NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
TRAIN, HELD_OUT, TREES = 64, 1000, 300


def guesses(records: list[Record], asked: list[Record], seed: int) -> dict[str, Floats]:
    """Return what each learner says of the logarithms of latencies, or of their order."""
    features, mode = FeatureMatrix(), records[0].conditions.mode
    shown = features.rows([r.candidate for r in records], mode)
    wanted = features.rows([r.candidate for r in asked], mode)
    prior, expected = features.log_prior(shown), features.log_prior(wanted)
    labels = np.log([r.latency for r in records]) - prior
    alike, names = np.ones(len(labels)), features.columns.names
    trees = Trees.fit(REGRESSION, shown, labels - labels.mean(), alike, 5, seed)
    boosted = trees.predict(wanted)[0]

    def process(of: Floats) -> Floats:
        """Return a Gaussian process alone: it counts fully beside what errs without end."""
        found = TaskProcess.fit(names, shown, of, np.full(len(of), 1e9), alike)
        return np.zeros(len(wanted)) if found is None else found.mixed(wanted, boosted, boosted)[0]

    smooth = process(labels - labels.mean())
    forest = ExtraTreesRegressor(TREES, max_features=0.5, random_state=seed)
    grown = forest.fit(np.nan_to_num(shown), labels - labels.mean())
    random = grown.predict(np.nan_to_num(wanted))
    model = cost_model("xgboost", mode=mode)
    model.update(records)
    return {
        "boosted trees": boosted + expected,
        "Gaussian process": smooth + expected,
        "Gaussian process of ranks": process(ranks(labels) / len(labels)),
        "randomised trees": random + expected,
        "mean of three": (boosted + smooth + random) / 3 + expected,
        "model": np.log(model.predict([r.candidate for r in asked]).latency),
    }


def judged(path: Path, seeds: int) -> dict[str, float]:
    """Return the share of pairs that each learner puts in order, the mean over seeds."""
    records = [record for record in read_evidence([path]).records if record.valid]
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(records))
        shown = [records[at] for at in order[:TRAIN]]
        asked = [records[at] for at in order[TRAIN : TRAIN + HELD_OUT]]
        latency = np.array([record.latency for record in asked])
        error = np.array([record.standard_error for record in asked])
        for name, guess in guesses(shown, asked, seed).items():
            found.setdefault(name, []).append(pairwise_accuracy(guess, latency, error))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Judge all learners on all tables and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    given = parser.parse_args()
    rows = {
        path.name.removesuffix(".json.gz"): judged(path, given.seeds)
        for path in given.files or sorted(SPACES.glob("*.json.gz"))
    }
    machine = describe_machine(Target.native(1))
    path = results_file(RESULTS, "learners", machine["device"])
    result = {"machine": machine, "trained": TRAIN, "seeds": given.seeds, "pairwise": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    names = list(next(iter(rows.values())))
    lines = [[table, *(f"{row[name]:.3f}" for name in names)] for table, row in rows.items()]
    columns = [f">{name}" for name in names]
    print_table(["table", *columns], lines, "pairs in the right order after 64 points")


if __name__ == "__main__":
    main()
