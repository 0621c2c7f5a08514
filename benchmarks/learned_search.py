"""Does the learned model help on this machine? ``python -m benchmarks.learned_search [--seeds 3]``.

One ternary and one attention shape are tuned with equal budgets by the default strategy (a process
for the task), by evolution with the model of all tasks and by random search, each from an empty
database. What all of them found is then measured in turn, in one session, with the default
schedule: those figures are compared, not the ones that each search saw. A problem and a seed is one
row, written when it is complete; what the file of the day holds is not measured again, so that a
long run can be cut into short ones (``--only``, ``--minutes``).
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from pathlib import Path
from typing import Any

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import known_rows, results_file, write_rows
from wattune.compiler.measure.runner import LocalRunner
from wattune.compiler.tuner import tune
from wattune.ops import DecodeAttention, Problem, TernaryGemm
from wattune.schedules.candidate import Candidate
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

RESULTS = Path(__file__).parent / "results"
KEPT = Path(".learned-search")
STRATEGIES = ("bayesian", "evolutionary", "random")
PROBLEMS: dict[str, Problem] = {
    "ternary": TernaryGemm(1, 14336, 4096, dtype="bfloat16"),
    "attention": DecodeAttention(1, 4096, 32, 8, 128),
}
ROUNDS = 7


class Paused(Exception):
    """The time is up; what was measured is in the databases."""


def searched(
    problem: Problem, target: Target, name: str, trials: int, seed: int, end: float
) -> dict[str, Any]:
    """Tune from nothing, or go on; return what was selected and how the best went."""
    KEPT.mkdir(exist_ok=True)
    digest = zlib.crc32(problem.key.encode())
    path = KEPT / f"{digest:08x}-{name}-{trials}-{seed}.sqlite"
    minutes = None if end == math.inf else (end - time.monotonic()) / 60
    if minutes is not None and minutes <= 0:
        raise Paused
    report = tune([problem], target, path, trials, minutes, strategy=name, mode="hot", seed=seed)
    if report.stopped == "minutes":
        raise Paused
    [part] = report.problems
    assert part.selected is not None
    return {
        "candidate": part.selected.candidate,
        "curve": [list(point) for point in part.curve],
        "seconds": report.seconds,
        "failures": report.failures,
    }


def compared(name: str, target: Target, trials: int, seed: int, end: float) -> dict[str, Any]:
    """Run all strategies on a problem, then measure in turn what they found."""
    problem = PROBLEMS[name]
    default = default_candidate(problem, target)
    found = {s: searched(problem, target, s, trials, seed, end) for s in STRATEGIES}
    picks: dict[str, Candidate] = {"default": default}
    picks |= {s: row.pop("candidate") for s, row in found.items()}
    with LocalRunner(target, "hot", seed=seed) as runner:
        records = runner.interleaved(list(picks.values()), rounds=ROUNDS)
    seconds = {pick: record.latency for pick, record in zip(picks, records, strict=True)}
    return {
        "problem": str(problem),
        "threads": target.threads,
        "trials": trials,
        "seed": seed,
        "seconds": seconds,
        "faster_than_default": {s: seconds["default"] / seconds[s] for s in STRATEGIES},
        "schedules": {pick: candidate.schedule.to_json() for pick, candidate in picks.items()},
        "searches": found,
    }


def main() -> None:
    """Add the rows of the named problems and seeds to today's file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=tuple(PROBLEMS), help="one of the problems")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=math.inf, help="before it stops")
    given = parser.parse_args()
    target, end = Target.native(1), time.monotonic() + 60 * given.minutes
    machine = describe_machine(target)
    path = results_file(RESULTS, "learned-search", machine["device"])
    for seed in range(given.seeds):
        for name in [given.only] if given.only else PROBLEMS:
            known = {"problem": str(PROBLEMS[name]), "trials": given.trials, "seed": seed}
            if known_rows(path, **known):
                continue
            try:
                row = compared(name, target, given.trials, seed, end)
            except Paused:
                print("the same command goes on")
                return
            write_rows(path, {"machine": machine}, [row])
            ratios = ", ".join(f"{s} {v:.3f}" for s, v in row["faster_than_default"].items())
            print(f"{name} seed {seed}, speed over the default: {ratios}", flush=True)


if __name__ == "__main__":
    main()
