"""How few energies a search for energy needs: ``python -m benchmarks.energy_search [--seeds 20]``.

Simulated devices (`energy_simulator`), not measurements. Each seed is another device; on each the
same tune, ``energy@5%`` with the default strategy, runs twice:

* ``all``: every candidate's energy is measured, as Kernel Tuner and a plain genetic search do;
* ``sparse``: energies are measured as `wattune.compiler.search.energy_policy` decides.

What counts is the true energy of what is selected at the end. Confirmation of the finalists, alike
in both, is counted as energies too. A third tune, for latency alone, shows what there was to save.
A stopped run goes on: what the file of the day holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.energy_simulator import MeasuringAll, MeasuringApart

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import known_rows, results_file, write_rows
from wattune.compiler.tuner import tune
from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, Problem
from wattune.schedules.target import Target

RESULTS = Path(__file__).parent / "results"
TARGET = Target.parse("cuda:sm_90a")
PROBLEMS: tuple[Problem, ...] = (
    DecodeAttention(16, 32768, 64, 8, 128),
    BlockSparseDecodeAttention(16, 32768, 64, 8, 128),
)
OBJECTIVE = "energy@5%"


def searched(
    runner: MeasuringAll | MeasuringApart,
    problem: Problem,
    trials: int,
    seed: int,
    objective: str = OBJECTIVE,
) -> dict[str, Any]:
    """Tune once; return the true figures of what was selected and the energies it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = tune(
            [problem],
            TARGET,
            f"{folder}/tuned.sqlite",
            trials,
            objective=objective,
            seed=seed,
            runner=runner,
        )
    selected = report.problems[0].selected
    assert selected is not None
    truth = runner.truth(selected.candidate)
    return {
        "seconds": truth.seconds,
        "joules": truth.joules,
        "energies": runner.energies,
        "search_seconds": time.perf_counter() - started,
    }


def compared(problem: Problem, trials: int, seed: int) -> dict[str, Any]:
    """Return all searches on one device."""
    every = searched(MeasuringAll(TARGET, seed), problem, trials, seed)
    sparse = searched(MeasuringApart(TARGET, seed), problem, trials, seed)
    fast = searched(MeasuringApart(TARGET, seed), problem, trials, seed, "latency")
    found = {"all": every, "sparse": sparse, "latency": fast}
    return {"problem": str(problem), "trials": trials, "seed": seed, **found}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratios of sparse to all: joules and energies, with bootstrap intervals."""
    joules = np.array([row["sparse"]["joules"] / row["all"]["joules"] for row in rows])
    energies = np.array([row["sparse"]["energies"] / row["all"]["energies"] for row in rows])
    saved = np.array([row["sparse"]["joules"] / row["latency"]["joules"] for row in rows])
    return {
        "devices": len(rows),
        "joules_ratio": _interval(joules),
        "energies_ratio": _interval(energies),
        "joules_ratio_to_latency_alone": _interval(saved),
        "worst_joules_ratio": float(joules.max()),
        "most_energies_ratio": float(energies.max()),
    }


def _interval(values: np.ndarray) -> dict[str, float]:
    """Return the geometric mean and the 95 % interval of its bootstrap."""
    rng = np.random.default_rng(0)
    means = np.exp(rng.choice(np.log(values), (2000, len(values))).mean(axis=1))
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(np.exp(np.log(values).mean())), "low": float(low), "high": float(high)}


def main() -> None:
    """Run all seeds and write one dated file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=220)
    given = parser.parse_args()
    machine = describe_machine(Target.native(1))
    path = results_file(RESULTS, "energy-search-simulated", machine["device"])
    for seed in range(given.seeds):
        for problem in PROBLEMS:
            if known_rows(path, problem=str(problem), trials=given.trials, seed=seed):
                continue
            row = compared(problem, given.trials, seed)
            joules = row["sparse"]["joules"] / row["all"]["joules"]
            print(
                f"{seed:3d} {type(problem).__name__:28} joules {joules:.4f} of all, "
                f"energies {row['sparse']['energies']} of {row['all']['energies']}",
                flush=True,
            )
            found = summary([*known_rows(path, trials=given.trials), row])
            write_rows(path, {"machine": machine, "simulated": True, "summary": found}, [row])
    print(json.dumps(summary(known_rows(path, trials=given.trials)), indent=1))


if __name__ == "__main__":
    main()
