"""Whether another kind of learner would know more: ``python -m benchmarks.learners [FILES]``.

Each learner sees the same features of the same random points of a task (`--trained`, 64) and orders
up to 1000 others; the figures are the share of pairs in the right order and the speed of the first
five beside the best of those others (peak@5), means over seeds. What none of them reaches is not in
the records, or not in the features. ``model`` is the cost model in use: trees and a Gaussian
process, weighted by their errors. Needs the packages of ``bench-search``. To one file in
``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

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
from wattune.cost_models.metrics import average_peak_score, pairwise_accuracy, ranks
from wattune.cost_models.task_process import TaskProcess
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target

Floats = NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
HELD_OUT, LEAST, PICKS, TREES = 1000, 50, 5, 300
FIGURES = {"pairwise": "pairs in the right order", "peak_at_5": "peak@5"}


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


def judged(path: Path, trained: int, seeds: int) -> dict[str, Any] | None:
    """Return how well each learner orders and picks, means over seeds; None of a small table."""
    records = [record for record in read_evidence([path]).records if record.valid]
    if len(records) < trained + LEAST:
        return None
    pairs, peaks = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(records))
        shown = [records[at] for at in order[:trained]]
        asked = [records[at] for at in order[trained : trained + HELD_OUT]]
        latency = np.array([record.latency for record in asked])
        error = np.array([record.standard_error for record in asked])
        for name, guess in guesses(shown, asked, seed).items():
            pairs[name].append(pairwise_accuracy(guess, latency, error))
            peaks[name].append(average_peak_score(guess, latency, PICKS))
    return {
        "table": path.name.removesuffix(".json.gz"),
        "trained": trained,
        "held_out": len(asked),
        "pairwise": {name: float(np.mean(values)) for name, values in pairs.items()},
        "peak_at_5": {name: float(np.mean(values)) for name, values in peaks.items()},
    }


def main() -> None:
    """Judge all learners on all tables and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trained", type=int, default=64, help="points that a learner is shown")
    given = parser.parse_args()
    machine = describe_machine(Target.native(1))
    path = results_file(RESULTS, f"learners-{given.trained}", machine["device"])
    rows = []
    for file in given.files or sorted(SPACES.glob("*.json.gz")):
        print(file.name, flush=True)
        if (row := judged(file, given.trained, given.seeds)) is not None:
            rows.append(row)
    result = {"machine": machine, "seeds": given.seeds, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    for figure, title in FIGURES.items():
        columns = [f">{name}" for name in rows[0][figure]]
        lines = [[row["table"], *(f"{v:.3f}" for v in row[figure].values())] for row in rows]
        print_table(["table", *columns], lines, f"{title} after {given.trained} points")


if __name__ == "__main__":
    main()
