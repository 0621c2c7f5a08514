"""Which cores measure and which build."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def usable_cpus() -> list[int]:
    """Return the processors this process may use, the first of each physical core first."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda cpu: (_rank(cpu), cpu))


def _rank(cpu: int) -> int:
    """Return how many hardware threads of the same core come before this one."""
    try:
        text = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return 0
    siblings: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        siblings.extend(range(int(first), int(last or first) + 1))
    return sorted(siblings).index(cpu) if cpu in siblings else 0


def divide(cpus: list[int], threads: int) -> tuple[list[int], list[int]]:
    """Return the processors that measure and those left for building, which may be none.

    The first core is left to the others where possible: it serves most interrupts.
    """
    measuring = cpus[1 : threads + 1] if len(cpus) > threads else cpus[:threads]
    return measuring, [cpu for cpu in cpus if cpu not in measuring]


def openmp_environment(cpus: list[int]) -> dict[str, str]:
    """Return the environment that keeps OpenMP's threads on these processors.

    They spin between calls, as they do in decoding, but not for long: builds follow.
    """
    return {
        "OMP_NUM_THREADS": str(len(cpus)),
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
        "OMP_PROC_BIND": "close",
        "OMP_WAIT_POLICY": "active",
        "OMP_DYNAMIC": "false",
        "GOMP_SPINCOUNT": "300000",
        # numpy's BLAS computes references: not the place for more threads.
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
