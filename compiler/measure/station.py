"""The measuring process of each kind of target: which module, on which cores, set up how."""

from __future__ import annotations

from collections.abc import Mapping

from wattune.compiler.measure.affinity import openmp_environment
from wattune.compiler.measure.builder import BuildPool
from wattune.compiler.measure.gpu_timing import gpu_footprint
from wattune.compiler.measure.pool import cold_footprint
from wattune.compiler.measure.process import Message, WorkerProcess
from wattune.compiler.measure.supervisor import Setting, Supervisor
from wattune.compiler.measure.timing import BUDGET_SECONDS
from wattune.errors import TargetError, UnknownNameError
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target

# Bytes of states that are drawn on the CPU, with a reference, to verify a kernel on a GPU.
MOST_DRAWN = 64 << 20


def check(target: Target, mode: str) -> None:
    """Refuse what cannot be measured on this machine."""
    if mode not in BUDGET_SECONDS:
        raise UnknownNameError("measuring mode", mode, BUDGET_SECONDS)
    if lacking := target.lacking():
        raise TargetError(f"the target cannot run here: {lacking}")


def supervisor_of(
    target: Target,
    mode: str,
    cpus: list[int],
    seed: int,
    versions: Mapping[str, str],
    run_timeout: float = 30.0,
    pool: BuildPool | None = None,
) -> Supervisor:
    """Prepare the process that measures candidates of a target on these cores.

    ``versions`` are those of the compiler that built them.
    """
    common = (mode, target.threads, fingerprint(target, versions), versions, run_timeout)
    if target.kind == "cuda":
        gpu: Message = {
            "device": 0,
            "mode": mode,
            "footprint": gpu_footprint(target.l2, target.memory),
            "seed": seed,
            "most_drawn": MOST_DRAWN,
        }
        worker = WorkerProcess("wattune.compiler.measure.gpu_worker", gpu)
        return Supervisor(worker, Setting(*common, MOST_DRAWN), pool)
    cpu: Message = {
        "cpus": cpus,
        "threads": target.threads,
        "mode": mode,
        "footprint": cold_footprint(target.l3, target.memory),
        "seed": seed,
        "amx": target.has("amx_tile"),
    }
    worker = WorkerProcess("wattune.compiler.measure.worker", cpu, openmp_environment(cpus))
    return Supervisor(worker, Setting(*common), pool)
