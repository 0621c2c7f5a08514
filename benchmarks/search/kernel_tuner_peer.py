"""Kernel Tuner's strategies in its own simulation mode, on the same measurements.

https://github.com/KernelTuner/kernel_tuner; every strategy with its default options. Its runner
counts distinct configurations, failures included, and gives a strategy the largest float for one.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from benchmarks.search.flat import Flat

from wattune.compiler.replay import Recording

STRATEGIES = (
    "simulated_annealing",
    "genetic_algorithm",
    "greedy_ils",
    "diff_evo",
    "pso",
)
_KERNEL = "recorded"


def run(recording: Recording, strategy: str, budget: int, seed: int) -> tuple[list[float], float]:
    """Return the cost of each distinct evaluation (infinite: failed), and the seconds of one."""
    from constraint import FunctionConstraint
    from kernel_tuner import tune_kernel

    flat = Flat.of(recording)
    names = list(flat.parameters)
    # What Kernel Tuner draws from.
    random.seed(seed)
    np.random.seed(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "cache.json")
        path.write_text(json.dumps(cache_file(recording, flat)))
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            results, _ = tune_kernel(
                _KERNEL,
                "",
                1,
                [],
                flat.parameters,
                restrictions=[FunctionConstraint(lambda *point: point in flat.schedules)],
                simulation_mode=True,
                cache=str(path),
                strategy=strategy,
                strategy_options={"max_fevals": budget},
                quiet=True,
                lang="C",
                seed=seed,
            )
        seconds = time.perf_counter() - start
    seen: dict[tuple[int, ...], None] = {}
    for result in results:
        point = tuple(int(result[name]) for name in names)
        if point in flat.schedules:
            seen.setdefault(point)
    costs = [float(c) for c in recording.costs([flat.schedules[point] for point in seen])]
    return costs[:budget], seconds / max(1, len(costs))


def cache_file(recording: Recording, flat: Flat) -> dict[str, object]:
    """Return the recording as a cache file; times in milliseconds."""
    entries = {}
    for point, schedule in flat.schedules.items():
        row = recording.rows[schedule]
        failed = (
            "CompilationFailedConfig" if row.failure == "build_error" else "RuntimeFailedConfig"
        )
        entries[",".join(map(str, point))] = {
            **dict(zip(flat.parameters, point, strict=True)),
            "time": failed if row.seconds is None else 1e3 * row.seconds,
            "compile_time": 0.0,
            "verification_time": 0.0,
            "benchmark_time": 0.0,
        }
    return {
        "device_name": "recorded",
        "kernel_name": _KERNEL,
        "problem_size": 1,
        "tune_params_keys": list(flat.parameters),
        "tune_params": flat.parameters,
        "objective": "time",
        "cache": entries,
    }
