"""The process that measures one implementation: JSON lines in, JSON lines out, no TVM.

The first line is the setup. Then each line asks for one round of calls; the end of the input ends
the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable
from wattune.compiler.bench.implementations import make_case
from wattune.ops import operator, problem_from_json

# Calls of a round that are not counted: caches, page tables and thread pools come to rest.
WARM_CALLS = 3


def prepare(spec: dict[str, Any]) -> Case:
    """Build the implementation that the setup names."""
    problem = problem_from_json(spec["problem"])
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(spec["seed"]))
    setup = Setup(problem, inputs, spec["threads"], spec["footprint"], spec["library"])
    return make_case(problem.operator, spec["implementation"], setup)


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
    """Call for so many seconds, going on with copy ``first``; return the seconds of each call."""
    found: list[float] = []
    copy, counted = first, -WARM_CALLS
    end = time.perf_counter() + seconds
    while counted < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        case.call(copy % case.copies)
        stop = time.perf_counter()
        if counted >= 0:
            found.append(stop - start)
        copy, counted = copy + 1, counted + 1
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
