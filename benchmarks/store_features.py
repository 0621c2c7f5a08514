"""Would TVM's per-store features help? ``python -m benchmarks.store_features DATABASE PROBLEM``.

TVM 0.27 can describe every store of a program by 164 numbers (`PerStoreFeature`, as Ansor and
MetaSchedule use it), also of ours. Here they are extracted from the programs of a database's
candidates and added up (sum and largest value over stores); trees are trained on them, on our
features, and on both, and judged on held-out candidates. To one file in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.accuracy import read_evidence
from wattune.compiler.bench.machine import describe_machine
from wattune.cost_models.boosting import REGRESSION, Trees
from wattune.cost_models.matrix import FeatureMatrix, Rows
from wattune.cost_models.metrics import average_peak_score, pairwise_accuracy
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target
from wattune.schedules.template import template_of

RESULTS = Path(__file__).parent / "results"
SIZES, SEEDS, LEAST_HELD_OUT = (32, 64, 128, 256), 8, 60


def store_features(records: Sequence[Record]) -> tuple[Rows, dict[str, float]]:
    """Return [n, 2 x 164 + 1] features and what lowering and extracting cost, ms a candidate."""
    import tvm
    from tvm.s_tir import Schedule, meta_schedule

    extractor = meta_schedule.feature_extractor.PerStoreFeature(5, 10, 64, False)
    rows, lowering, extracting = [], 0.0, 0.0
    for record in records:
        candidate = record.candidate
        start = time.process_time()
        program = template_of(candidate).lower(
            candidate.problem, candidate.target, candidate.schedule.values
        )
        lowered = time.process_time()
        module = tvm.IRModule({"main": program})
        target = tvm.target.Target(candidate.target.llvm())
        context = meta_schedule.TuneContext(mod=module, target=target)
        wanted = [meta_schedule.MeasureCandidate(Schedule(module), [])]
        stores = extractor.extract_from(context, wanted)[0].numpy()
        rows.append([*stores.sum(axis=0), *stores.max(axis=0), len(stores)])
        lowering += lowered - start
        extracting += time.process_time() - lowered
    count = len(records)
    cost = {"lowering_ms": 1e3 * lowering / count, "extracting_ms": 1e3 * extracting / count}
    return np.array(rows, np.float32), cost


def compare(records: Sequence[Record], stores: Rows) -> list[dict[str, Any]]:
    """Train on each kind of features; return mean figures by number of records."""
    features = FeatureMatrix()
    rows = [features.row(record.candidate, record.conditions.mode) for record in records]
    ours = features.columns.stack(rows)
    prior = features.log_prior(ours)
    latency = np.array([record.latency for record in records])
    error = np.array([record.standard_error for record in records])
    kinds = {"ours": ours, "stores": stores, "both": np.hstack([ours, stores])}
    found = []
    for size in (n for n in SIZES if len(records) >= n + LEAST_HELD_OUT):
        for name, matrix in kinds.items():
            figures = []
            for seed in range(SEEDS):
                order = np.random.default_rng(seed).permutation(len(records))
                shown, held = order[:size], order[size:]
                labels = np.log(latency[shown]) - prior[shown]
                level = labels.mean()
                trees = Trees.fit(REGRESSION, matrix[shown], labels - level, np.ones(size), 3, seed)
                guess = np.exp(trees.predict(matrix[held])[0] + level + prior[held])
                figures.append(
                    (
                        pairwise_accuracy(guess, latency[held], error[held]),
                        average_peak_score(guess, latency[held], 5),
                    )
                )
            pairs, peak = np.mean(figures, axis=0)
            found.append({"features": name, "train": size, "pairwise": pairs, "peak_at_5": peak})
    return found


def main() -> None:
    """Extract, compare and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("problem")
    wanted = parser.parse_args()
    usable = FeatureMatrix().usable
    records = [
        record
        for record in read_evidence([wanted.database]).records
        if record.valid and str(record.candidate.problem) == wanted.problem
        if usable(record.candidate)
    ]
    stores, cost = store_features(records)
    result = {
        "machine": describe_machine(Target.native(1)),
        "problem": wanted.problem,
        "candidates": len(records),
        **cost,
        "rows": compare(records, stores),
    }
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-store_features.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"{path} written")


if __name__ == "__main__":
    main()
