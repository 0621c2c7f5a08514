"""Prepare the standard measurement: python benchmarks/gpu/prepare.py [--samples N] [--all].

Builds a bundle that `run.py` beside this measures on a GPU machine; `make gpu-bundle` calls it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.cases import Case, cases

from wattune.compiler.bundle.create import create
from wattune.errors import ScheduleError
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

FOLDER = Path(__file__).parents[2] / ".gpu-bundle"
CASES = "cases.json"


def served(wanted: Sequence[Case], target: Target) -> tuple[list[Case], list[str]]:
    """Return the cases that some template serves, and a note for each other one."""
    found, notes = [], []
    for case in wanted:
        try:
            templates_for(case.problem, target)
            found.append(case)
        except ScheduleError as error:
            notes.append(f"{case.name}: {error}")
    return found, notes


def prepare(wanted: Sequence[Case], target: Target, folder: Path, samples: int) -> list[str]:
    """Write the bundle and what its cases are called; returns notes of what is left out."""
    found, notes = served(wanted, target)

    def show(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"built {done} of {total}", flush=True)

    # Small cases are looked at by the sanitizer, which is slow: their defaults are enough.
    small = {case.problem for case in found if case.small}
    create([c.problem for c in found], target, folder, samples, built=show, few=small)
    index = [
        {
            "name": case.name,
            "problem": case.problem.to_json(),
            "small": case.small,
            "energy": case.energy,
        }
        for case in found
    ]
    (folder / CASES).write_text(json.dumps({"cases": index, "notes": notes}, indent=1) + "\n")
    return notes


def main() -> None:
    """Prepare the standard cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=12, help="schedules a problem")
    parser.add_argument("--all", action="store_true", help="all cases, not the standard ones only")
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    wanted = [case for case in cases() if options.all or case.standard or case.small]
    for note in prepare(wanted, Target.parse(options.target), options.out, options.samples):
        print(f"left out: {note}", file=sys.stderr)
    print(f"{options.out} is ready: python benchmarks/gpu/run.py")


if __name__ == "__main__":
    main()
