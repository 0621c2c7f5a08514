"""How well and how fast the tuner tunes: ``python benchmarks/tuning.py [--threads 1]``.

Four figures, each beside what bounds it, to one dated file in ``benchmarks/results/``:

* candidates per second, hot and cold, building and verifying included;
* what tuning gains over the default schedule;
* what it costs 1, 8 and 128 tokens to share one packed weight: each one's best in the layout of the
  group against its best in any layout, of the same interleaved measurement;
* on a sub-space that is measured exhaustively first: how near the tuner comes to the best point
  with a small budget. The tuner's picks are answered from the recorded measurements, so that its
  choice is judged and not the noise of a second measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.measure.runner import LocalRunner
from wattune.compiler.search.strategy import strategy
from wattune.compiler.search.task import Task
from wattune.compiler.tuner import tune
from wattune.cost_models.base import cost_model
from wattune.ops import Problem, TernaryGemm
from wattune.schedules.candidate import Record, Schedule
from wattune.schedules.target import Target
from wattune.schedules.template import Layout

RESULTS = Path(__file__).parent / "results"
TRIALS = 96
BATCH = 8
SEEDS = 5
# The sub-space: one layout, every schedule that reads it.
SUBSPACE = (TernaryGemm(1, 2560, 2560, dtype="bfloat16"), Layout.make("i2", groups=1))
BUDGET = 64


def rates(threads: int, mode: str) -> dict[str, Any]:
    """Tune two buckets of one weight from scratch; return rates and gains."""
    problems = [TernaryGemm(tokens, 4096, 4096, dtype="bfloat16") for tokens in (1, 8)]
    with tempfile.TemporaryDirectory() as folder:
        target = Target.native(threads)
        report = tune(problems, target, f"{folder}/tuned.sqlite", trials=TRIALS, mode=mode)
    return {
        "mode": mode,
        "threads": threads,
        "trials": report.trials,
        "seconds": report.seconds,
        "candidates_per_second": report.candidates_per_second,
        "failures": report.failures,
        "problems": [
            {
                "problem": str(part.problem),
                "default_seconds": part.default and part.default.latency,
                "best_seconds": part.best and part.best.latency,
                "selected_seconds": part.selected and part.selected.latency,
            }
            for part in report.problems
        ],
    }


def shared_layout(threads: int) -> dict[str, Any]:
    """Tune three buckets of one weight that count alike; return what sharing costs each."""
    problems: list[Problem] = [
        TernaryGemm(tokens, 4096, 4096, dtype="bfloat16") for tokens in (1, 8, 128)
    ]
    target, weights = Target.native(threads), dict.fromkeys(problems, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/tuned.sqlite"
        report = tune(problems, target, database, trials=2 * TRIALS, weights=weights)
    return {
        "threads": threads,
        "layout": report.problems[0].layout,
        "best_over_shared": {
            str(part.problem): part.best.latency / part.selected.latency
            for part in report.problems
            if part.best and part.selected
        },
    }


def measure_all(task: Task) -> dict[Schedule, Record]:
    """Measure every candidate of a task."""
    candidates = list(task.enumerate())
    with LocalRunner(task.target, "hot") as runner:
        return {record.candidate.schedule: record for record in runner.run(candidates)}


def replayed(task: Task, table: dict[Schedule, Record], name: str, seed: int) -> float:
    """Return best / found after a budget of trials answered from the table."""
    model = cost_model("xgboost", mode="hot") if name == "evolutionary" else None
    search = strategy(name, task, model, seed)
    found: list[float] = []
    while len(found) < BUDGET and (batch := search.ask(min(BATCH, BUDGET - len(found)))):
        records = [table[candidate.schedule] for candidate in batch]
        found += [record.latency for record in records]
        search.tell(records)
        if model is not None:
            model.update(records)
    return min(record.latency for record in table.values()) / min(found)


def exhaustive(threads: int) -> dict[str, Any]:
    """Measure the sub-space, then let strategies search it."""
    problem, layout = SUBSPACE
    task = Task(problem, Target.native(threads), layout)
    start = time.perf_counter()
    table = measure_all(task)
    latencies = np.sort([record.latency for record in table.values() if record.valid])
    return {
        "problem": str(problem),
        "layout": str(layout),
        "points": len(table),
        "measuring_seconds": time.perf_counter() - start,
        "best_seconds": float(latencies[0]),
        "median_seconds": float(np.median(latencies)),
        "within_3_percent": int((latencies <= latencies[0] / 0.97).sum()),
        "budget": BUDGET,
        "best_over_found": {
            name: [replayed(task, table, name, seed) for seed in range(SEEDS)]
            for name in ("evolutionary", "plain_evolutionary", "random")
        },
    }


def main() -> None:
    """Run everything and write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    result = {
        "machine": describe_machine(Target.native(threads)),
        "rates": [rates(threads, mode) for mode in ("hot", "cold")],
        "shared_layout": shared_layout(threads),
        "exhaustive": exhaustive(threads),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-tuning-{threads}t.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"{path} written")


if __name__ == "__main__":
    main()
