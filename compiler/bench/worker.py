"""The process that measures one implementation: JSON lines in, JSON lines out, no TVM.

The first line is the setup. Then each line asks for one round of calls; the end of the input ends
the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from wattune.compiler.bench.case import Case, Setup, Unavailable
from wattune.compiler.bench.data import load
from wattune.compiler.bench.implementations import maker_of
from wattune.ops import problem_from_json

# Calls of a round that are not counted: caches, page tables and thread pools come to rest.
WARM_CALLS = 3
LEAST_CALLS = 3
# Times the seconds of a round: after these one call is enough.
MOST = 5


def prepare(spec: dict[str, Any]) -> Case:
    """Build the implementation that the setup names."""
    problem = problem_from_json(spec["problem"])
    make = maker_of(problem.operator, spec["implementation"])
    data = load(Path(spec["data"]))
    setup = Setup(
        problem,
        data.inputs,
        data.expected,
        spec["moved"],
        spec["threads"],
        spec["footprint"],
        spec["library"],
    )
    return make(setup)


def answer_setup(spec: dict[str, Any]) -> tuple[Case | None, dict[str, Any]]:
    """Build and check the implementation; say why where it cannot be measured."""
    try:
        case = prepare(spec)
        error = case.error()
    except Unavailable as reason:
        return None, {"unavailable": str(reason)}
    if not error <= case.tolerance:
        wrong = f"wrong result: relative error {error:.2g}, allowed {case.tolerance:.2g}"
        return None, {"unavailable": wrong}
    return case, {"moved": case.moved, "copies": case.copies, "error": error}


def measure_round(case: Case, first: int, seconds: float) -> list[float]:
    """Call for so many seconds, going on with copy ``first``; return the seconds of each call.

    Calls that take longer than that need little warming, and one of them is a round.
    """
    found: list[float] = []
    copy, counted = first, -WARM_CALLS
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        case.call(copy % case.copies)
        stop = time.perf_counter()
        copy += 1
        if counted < 0:
            counted = counted + 1 if stop - begin < seconds else 0
            continue
        found.append(stop - start)
        passed = stop - begin
        if passed > seconds and len(found) >= (LEAST_CALLS if passed < MOST * seconds else 1):
            return found


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer the setup, then every round."""

    def answer(data: dict[str, Any]) -> None:
        print(json.dumps(data), file=answers, flush=True)

    case, ready = answer_setup(json.loads(requests.readline()))
    answer(ready)
    if case is None:
        return
    copy = 0
    for line in requests:
        runs = measure_round(case, copy, json.loads(line)["seconds"])
        # Whatever was called to warm up is not called first again.
        copy += len(runs) + WARM_CALLS
        answer({"runs": runs})


def main() -> None:
    """Serve on the standard streams; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # TVM would fill the thread-launch slot of exported libraries with its own pool.
    sys.modules["tvm"] = None  # type: ignore[assignment]
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
