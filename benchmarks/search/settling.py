"""Where searches end by themselves: ``python -m benchmarks.search.settling [--seeds 5]``.

On every recorded space the strategy is asked for rounds until what it expects to win is less than
the noise of the measurements (`wattune.compiler.search.stopping`), as in a tune; the table says how
many points that took and how far the best of them is from the best of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.search.runs import space, space_names
from benchmarks.search.summary import median

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.cli.output import print_table
from wattune.compiler.replay import Recording
from wattune.compiler.replay.runner import ReplayRunner
from wattune.compiler.search.stopping import Settling, noise
from wattune.compiler.search.strategy import strategy
from wattune.cost_models.base import cost_model
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target

RESULTS = Path(__file__).parents[1] / "results"
ROUND = 8


def searched(recorded: Recording, name: str, seed: int) -> list[Record]:
    """Return the records of a search until it settles or the space is used up."""
    found = strategy(name, recorded.task, cost_model("prior", mode=recorded.mode), seed)
    runner, settling = ReplayRunner(recorded), Settling()
    records: list[Record] = []
    while asked := found.ask(ROUND):
        new = list(runner.run(asked))
        found.tell(new)
        records += new
        if settling.told(found.gain, records):
            break
    return records


def row(recorded: Recording, name: str, strategy_name: str, seeds: int) -> dict[str, Any]:
    """Return the row of a space: one number of points, and one regret, a seed."""
    runs = [searched(recorded, strategy_name, seed) for seed in range(seeds)]
    best = recorded.optimum()
    return {
        "problem": name,
        "implementation": strategy_name,
        "points": len(recorded.rows),
        "noise": noise(runs[0]),
        "evaluations": [len(records) for records in runs],
        "regret": [min(r.latency for r in records) / best - 1 for records in runs],
    }


def main() -> None:
    """Search every space with every seed; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategy", default="bayesian")
    given = parser.parse_args()
    rows = [row(space(name), name, given.strategy, given.seeds) for name in space_names()]
    machine = describe_machine(Target.native())
    write_rows(
        results_file(RESULTS, "search-settling", machine["device"]), {"machine": machine}, rows
    )
    lines = [
        [
            r["problem"],
            r["points"],
            f"{r['noise']:.2%}",
            f"{median(r['evaluations']):.0f} (at most {max(r['evaluations'])})",
            f"{median(r['regret']):.2%} (at most {max(r['regret']):.2%})",
        ]
        for r in rows
    ]
    print_table(("space", ">points", ">noise", ">evaluations", ">regret"), lines)


if __name__ == "__main__":
    main()
