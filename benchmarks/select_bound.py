"""How near `select_blocks` comes to two plain passes: ``python benchmarks/select_bound.py``.

The scores of a layer lie in the first or second cache, whose bandwidth no selection can use: each
vector of scores takes a comparison, a compression (two instructions) and a count at least, after a
pass that finds the bound. So the yardstick is a loop in C over the same scores, in one thread: the
maximum of each row, then the indices of the scores that reach a bound, which is given to it. The
kernel is the default schedule, called from C as the tuner measures it, on scores that are hot.
Beside both, an exact selection that is written by hand, on 16-bit keys (`select_keys.c`): how near
the yardstick another algorithm comes. And what others do for the same indices: numpy and torch
choose the best and sort their indices, all rows in one call.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.cc import cached
from wattune.compiler.measure.runner import LocalRunner
from wattune.errors import WattuneError
from wattune.ops import SelectBlocks, operator
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

RESULTS = Path(__file__).parent / "results"
PROBLEMS = tuple(
    SelectBlocks(1, context, 8, block_size=size, method="fraction")
    for context in (32768, 131072)
    for size in (64, 16)
)
REPEATS = 2000
CALLS = 200
# A vector beyond the list.
SPARE = 16


def library(name: str, function: str) -> Callable[..., float]:
    """Compile a C file of this folder; return its function, which returns seconds."""
    source = Path(__file__).with_name(name)
    loaded = ctypes.CDLL(str(cached(source, ("-O3", "-march=native"), ".so")))
    found: Callable[..., float] = getattr(loaded, function)
    found.restype = ctypes.c_double  # type: ignore[attr-defined]
    return found


def rows_of(problem: SelectBlocks) -> NDArray[np.float32]:
    """Return the scores of the problem, a row a head."""
    scores = operator(problem.operator).make_inputs(problem, np.random.default_rng(0))["scores"]
    return np.ascontiguousarray(scores.reshape(-1, scores.shape[-1]))


def two_passes(problem: SelectBlocks) -> float:
    """Return the seconds of the C loop."""
    rows = rows_of(problem)
    count = rows.shape[1]
    bounds = np.sort(rows, 1)[:, count - problem.best(count)].copy()
    indices, sink = np.empty(count + SPARE, np.int32), ctypes.c_double()
    return library("select_bound.c", "two_passes")(
        *(ctypes.c_void_p(a.ctypes.data) for a in (rows, bounds)),
        ctypes.c_int64(len(rows)),
        ctypes.c_int64(count),
        ctypes.c_void_p(indices.ctypes.data),
        ctypes.c_int(REPEATS),
        ctypes.byref(sink),
    )


def by_hand(problem: SelectBlocks) -> float:
    """Return the seconds of the selection that is written by hand; infinite without AVX2."""
    rows = rows_of(problem)
    count, most = rows.shape[1], problem.best(rows.shape[1])
    indices = np.zeros((len(rows), count + SPARE), np.int32)
    seconds = library("select_keys.c", "select_keys")(
        ctypes.c_void_p(rows.ctypes.data),
        ctypes.c_int64(len(rows)),
        ctypes.c_int64(count),
        ctypes.c_int(most),
        ctypes.c_void_p(indices.ctypes.data),
        ctypes.c_int64(SPARE),
        ctypes.c_int(REPEATS),
    )
    best = np.sort(np.argsort(-rows, 1, kind="stable")[:, :most], 1)
    if np.isfinite(seconds) and not np.array_equal(indices[:, :most], best):
        raise WattuneError(f"{problem}: the selection by hand is wrong")
    return seconds


def seconds_of(call: Callable[[], object]) -> float:
    """Return the least seconds of a call."""
    least = math.inf
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def peers(problem: SelectBlocks) -> dict[str, float]:
    """Return the microseconds of numpy and torch, in one thread."""
    import torch

    torch.set_num_threads(1)
    rows = rows_of(problem)
    most, scores = problem.best(rows.shape[1]), torch.from_numpy(rows)
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: np.sort(np.argpartition(rows, -most, 1)[:, -most:], 1),
        "torch": lambda: torch.topk(scores, most, 1, sorted=False).indices.sort(1).values,
    }
    return {
        f"{name}_microseconds": round(seconds_of(call) * 1e6, 2) for name, call in calls.items()
    }


def row(target: Target, problem: SelectBlocks) -> dict[str, object]:
    """Measure the kernel between two measurements of the yardstick."""
    candidate = default_candidate(problem, target)
    with LocalRunner(target, "hot") as runner:
        before = two_passes(problem)
        (record,) = runner.interleaved([candidate])
        hand = by_hand(problem)
        plain = min(before, two_passes(problem))
        others = peers(problem)
    beside = {
        "by_hand_microseconds": round(hand * 1e6, 2),
        "by_hand_of_two_passes": round(plain / hand, 3),
    }
    return {
        "problem": str(problem),
        "scores": problem.kv_heads * problem.context // problem.block_size,
        "microseconds": round(record.latency * 1e6, 2),
        "two_passes_microseconds": round(plain * 1e6, 2),
        "of_two_passes": round(plain / record.latency, 3),
        **(beside if np.isfinite(hand) else {}),
        **others,
    }


def main() -> None:
    """Measure and print all problems, then write them to one dated file."""
    rows = []
    for problem in PROBLEMS:
        rows.append(row(Target.native(threads=1), problem))
        print(json.dumps(rows[-1]), flush=True)
    machine = describe_machine(Target.native(threads=1))
    path = results_file(RESULTS, "select_bound", machine["device"])
    write_rows(path, {"machine": machine}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
