"""What tuning gains over the default schedules, for the problems of `benchmarks/run.py`.

    python -m benchmarks.defaults moe_gate moe_topk --threads 1,2 --minutes 1

Each routine is tuned from scratch. A row has the default's seconds and those of the schedule that
`compile` takes, from the same interleaved measurement, and their ratio: 1 where the default is the
best, below where tuning gains. Writes a dated file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.run import ROUTINES, Routine

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.cli.bench import parse_problems
from wattune.compiler.tuner import tune
from wattune.schedules.host import device_name
from wattune.schedules.target import Target

RESULTS = Path(__file__).with_name("results")
MOST_TRIALS = 1_000_000


def rows(operator: str, routine: Routine, threads: int, minutes: float) -> list[dict[str, Any]]:
    """Tune the problems of a routine."""
    fields = routine.get("field", ())
    named = (fields,) if isinstance(fields, str) else fields
    problems = parse_problems(operator, str(routine["shapes"]), named)
    mode = str(routine["mode"])
    # Without a shared layout every problem counts alike.
    with tempfile.TemporaryDirectory() as folder:
        report = tune(
            problems,
            Target.native(threads),
            f"{folder}/tuned.sqlite",
            MOST_TRIALS,
            minutes,
            mode=mode,
            weights=dict.fromkeys(problems, 1.0),
        )
    found = []
    for part in report.problems:
        if part.default is None or part.selected is None:
            print(f"{part.problem}, {threads} thread(s): more minutes are needed", flush=True)
            continue
        default, selected = part.default.latency, part.selected.latency
        found.append(
            {
                "problem": part.problem.to_json(),
                "threads": threads,
                "mode": mode,
                "trials": part.trials,
                "default_seconds": default,
                "selected_seconds": selected,
                "selected_over_default": selected / default,
            }
        )
        print(
            f"{part.problem}, {threads} thread(s): {selected / default:.2f} of the default's time"
        )
    return found


def main() -> None:
    """Tune the operators that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="+", choices=list(ROUTINES), metavar="OPERATOR")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each routine")
    options = parser.parse_args()
    path = results_file(RESULTS, "defaults", device_name())
    for threads in map(int, options.threads.split(",")):
        machine = describe_machine(Target.native(threads))
        for operator in options.operators:
            for routine in ROUTINES[operator]:
                found = rows(operator, routine, threads, options.minutes)
                write_rows(path, {"machine": machine}, found)
    print(f"{path} written")


if __name__ == "__main__":
    main()
