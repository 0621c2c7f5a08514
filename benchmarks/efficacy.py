"""Do scores of training records help? ``python -m benchmarks.efficacy [--seeds 20]``.

DELT's scores (`wattune.cost_models.efficacy`) on recorded tables, nothing is timed: a learner is
trained on N random points of a table and ranks others of it. Arms: no score, TracIn, learnability,
quality, both (LQS); each used as weights, as a selection of the better half, and as an order of
training. Learners: boosted trees trained in full, which know no order (the control), trees
continued fold by fold, and a network trained in order. *Transfer* trains on 16 points and on 256
records of the next table's device, of which scores weight or select.

Every difference is to the same learner without scores on the same split; intervals are paired
bootstraps over tables and seeds, 95 %. The result goes to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.efficacy_learners import LEARNERS, Problem, Set, scores_of, trained

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.replay import read_recording
from wattune.cost_models.efficacy import ARMS, ORDERS
from wattune.cost_models.matrix import FeatureMatrix
from wattune.cost_models.metrics import average_peak_score, pairwise_accuracy, spearman
from wattune.schedules.target import Target

HERE = Path(__file__).parent
SIZES = (32, 128)
TRANSFER, SOURCE = 16, 256
HELD_OUT = 300
RESAMPLES = 2000
Figures = dict[tuple[str, ...], list[dict[str, float]]]
METRICS = ("pairwise", "spearman", "peak_at_5")


def read_sets(paths: Sequence[Path]) -> list[Set]:
    """Read tables as features, ln(latency) and its standard error."""
    columns, found = FeatureMatrix(), []
    for path in paths:
        records = [record for record in read_recording(path).records() if record.valid]
        rows = [columns.row(record.candidate, record.conditions.mode) for record in records]
        latency = np.array([record.latency for record in records])
        error = np.array([record.standard_error for record in records]) / latency
        found.append(Set(path.name.split(".")[0], rows, np.log(latency), error))
    return [
        Set(each.name, columns.columns.stack(each.rows), each.latency, each.error) for each in found
    ]


def problems(sets: Sequence[Set], seed: int) -> Iterator[tuple[str, Problem]]:
    """Yield scenario and split."""
    for number, table in enumerate(sets):
        order = np.random.default_rng([seed, number]).permutation(len(table.latency))
        held_out = order[-HELD_OUT:]
        for size in SIZES:
            yield f"N={size}", Problem.of(table, order[:size], held_out)
        source = sets[(number + 1) % len(sets)]
        other = np.random.default_rng([seed, number, 1]).permutation(len(source.latency))
        split = Problem.of(table, order[:TRANSFER], held_out, source, other[:SOURCE])
        yield "transfer", split


def uses(learner: str, scenario: str) -> Iterator[str]:
    """Yield how scores can be used by a learner."""
    yield from ("weight", "top-r")
    if scenario != "transfer":
        yield from ORDERS if learner != "trees" else ("folded3",)


def applies(arm: str, use: str) -> bool:
    """Say whether a use asks for scores, or for their absence."""
    return (use in ("shuffle", "folded3")) if arm == "none" else use != "shuffle"


def figures(problem: Problem, predicted: Any) -> dict[str, float]:
    """Judge a prediction of the held-out points."""
    p, m = np.exp(predicted), np.exp(problem.held_latency)
    return {
        "pairwise": pairwise_accuracy(p, m, problem.held_error * m),
        "spearman": spearman(p, m),
        "peak_at_5": average_peak_score(p, m, 5),
    }


def run(sets: Sequence[Set], seeds: Sequence[int]) -> Figures:
    """Return, for (learner, scenario, arm, use), the differences to training without scores."""
    found: Figures = defaultdict(list)
    for seed in seeds:
        for scenario, problem in problems(sets, seed):
            for learner in LEARNERS:
                plain = figures(problem, trained(learner, problem, None, "none", seed))
                found[learner, scenario, "none", "none"].append(plain)
                for arm in ARMS:
                    scores = scores_of(learner, problem, arm, seed)
                    for use in uses(learner, scenario):
                        if not applies(arm, use):
                            continue
                        guess = trained(learner, problem, scores, use, seed)
                        mine = figures(problem, guess)
                        change = {metric: mine[metric] - plain[metric] for metric in METRICS}
                        found[learner, scenario, arm, use].append(change)
        print(f"seed {seed} done", flush=True)
    return found


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its 95 % bootstrap interval."""
    array, rng = np.array(values), np.random.default_rng(0)
    means = array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def summarise(found: Figures) -> list[dict[str, Any]]:
    """Return one row a combination; the area under the learning curve is the mean over N."""
    merged: Figures = defaultdict(list)
    for (learner, scenario, arm, use), values in found.items():
        merged[learner, scenario, arm, use] += values
        if scenario != "transfer":
            merged[learner, "area", arm, use] += values
    return [
        {
            **dict(zip(("learner", "scenario", "arm", "use"), key, strict=True)),
            "splits": len(values),
            **{metric: interval([v[metric] for v in values]) for metric in METRICS},
        }
        for key, values in merged.items()
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the differences in pairwise accuracy, of the areas and of transfer."""
    for row in rows:
        if row["scenario"] in ("area", "transfer"):
            pairs = row["pairwise"]
            name = " ".join(f"{row[key]:12s}" for key in ("learner", "scenario", "arm", "use"))
            clear = "" if pairs["low"] <= 0 <= pairs["high"] else "  *"
            print(f"{name} {pairs['mean']:+.4f} [{pairs['low']:+.4f}, {pairs['high']:+.4f}]{clear}")


def main() -> None:
    """Run the ablation and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("tables", nargs="*", type=Path)
    wanted = parser.parse_args()
    paths = wanted.tables or sorted((HERE / "spaces").glob("*.json.gz"))
    start = time.perf_counter()
    rows = summarise(run(read_sets(paths), range(wanted.seeds)))
    result = {
        "machine": describe_machine(Target.native(1)),
        "tables": [path.name for path in paths],
        "seeds": wanted.seeds,
        "seconds": time.perf_counter() - start,
        "rows": rows,
    }
    path = HERE / "results" / f"{time.strftime('%Y-%m-%d')}-efficacy.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    show(rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
