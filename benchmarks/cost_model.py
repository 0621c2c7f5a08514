"""How good the cost models are, and what they cost: ``python -m benchmarks.cost_model [FILES]``.

On recorded data (databases, tables; by default the shipped ones) each model is trained on 16 points
with transfer from the other files, on 64 and on 256 points without, and judged on others
(`wattune.cost_models.evaluate`). Nothing is timed but the models themselves: the processor's time
of one thread for a search of 256 candidates in batches of 8, of which each is trained on and 500
others are predicted before, over the number of candidates. To one file in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.accuracy import judge, maker, read_evidence
from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file
from wattune.cost_models.evaluate import summary
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target

HERE = Path(__file__).parent
MODELS = ("xgboost", "mlp", "prior", "random")
# Points to train on, and whether the other files' records are learned from first.
SETTINGS = ((16, True), (16, False), (64, False), (256, False))
SEEDS = 2
BUDGET, BATCH, PREDICTED = 256, 8, 500


def quality(paths: Sequence[Path], models: Sequence[str]) -> list[dict[str, Any]]:
    """Judge every model in every setting; one row a task."""
    evidence, rows = read_evidence(paths), []
    for model in models:
        for train, transfer in SETTINGS:
            found = summary(judge(evidence, model, train, SEEDS, transfer))
            for row in found:
                device = row["target"]["device"] or row["target"]["arch"]
                how = {"model": model, "train": train, "transfer": transfer}
                rows.append({**how, **row, "target": device})
    return rows


def cost(model: str, records: Sequence[Record]) -> dict[str, float]:
    """Return milliseconds of processor time for each measured candidate of one search."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(records))
    learner = maker(model, records[0].conditions.mode, {})()
    training = proposing = 0.0
    for start in range(0, min(BUDGET, len(records)), BATCH):
        others = [records[at].candidate for at in rng.integers(len(records), size=PREDICTED)]
        before = time.process_time()
        learner.predict(others)
        proposing += time.process_time() - before
        batch = [records[at] for at in order[start : start + BATCH]]
        before = time.process_time()
        learner.update(batch)
        training += time.process_time() - before
    count = min(BUDGET, len(records))
    return {"training_ms": 1e3 * training / count, "proposing_ms": 1e3 * proposing / count}


def main() -> None:
    """Judge, time and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this; repeatable")
    wanted = parser.parse_args()
    paths = wanted.files or sorted((HERE / "spaces").glob("*.json.gz"))
    models = wanted.model or MODELS
    rows = quality(paths, models)
    # Of the largest: a search of this length fits into it.
    records = max((read_evidence([path]).records for path in paths), key=len)
    costs = {model: cost(model, records) for model in models}
    machine = describe_machine(Target.native(1))
    result = {
        "machine": machine,
        "files": [path.name for path in paths],
        "seeds": SEEDS,
        "cost": costs,
        "quality": rows,
    }
    path = results_file(HERE / "results", "cost_model", machine["device"])
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        how = f"{row['train']}{' + others' if row['transfer'] else ''}"
        print(
            f"{row['model']:8s} {how:12s} {row['name']:40.40s} {row['target']:24.24s} "
            f"pairs {row['pairwise']:.3f} peak@5 {row['peak_at_5']:.3f} "
            f"in 1, 2 sigma {row['within_1']:.2f} {row['within_2']:.2f}"
        )
    for model, found in costs.items():
        print(f"{model:8s} {found['training_ms']:.1f} + {found['proposing_ms']:.1f} ms a candidate")
    print(f"{path} written")


if __name__ == "__main__":
    main()
