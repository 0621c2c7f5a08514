"""What the machine's measured limits mean for the cost models and for the tasks' bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wattune.compiler.measure.limits import Limits
from wattune.compiler.search.task import Task
from wattune.cost_models.prior import Rates, default_rates, measured_rates
from wattune.cost_models.prior_model import PriorModel
from wattune.errors import TargetError
from wattune.schedules.target import Target

# Operations (a multiply and an add are two) of one instruction.
_DOT_512, _DOT_256, _TILE = 128, 64, 32768
# Candidates whose roofline is looked at for a task's bound.
_SAMPLES = 64


def rates_of(target: Target, limits: Limits) -> Rates | None:
    """Return rates from measured limits; None where these were measured for other threads."""
    if target.kind == "cuda":
        return _gpu_rates(target, limits)
    operations: dict[str, float] = {}
    units = (
        ("tile", limits.amx_gops, _TILE),
        ("dot", limits.vnni256_gops, _DOT_256),
        ("dot", limits.vnni_gops if target.has("avx512_vnni") else {}, _DOT_512),
    )
    for unit, gops, size in units:
        if str(target.threads) in gops:
            operations[unit] = gops[str(target.threads)] * 1e9 / size
    try:
        return measured_rates(
            target, lambda size, threads: 1e9 * limits.read_bandwidth(size, threads), operations
        )
    except TargetError:
        return None


def _gpu_rates(target: Target, limits: Limits) -> Rates | None:
    """Return the usual rates of a GPU with the bandwidth that its memory was measured to have."""
    guess = default_rates(target)
    try:
        read = 1e9 * limits.read_bandwidth(target.memory, target.threads)
    except TargetError:
        return None
    return replace(guess, bytes={**guess.bytes, "memory": read})


def floors(tasks: Sequence[Task], prior: PriorModel, seed: int = 0) -> list[float]:
    """Return the least latency that the roofline allows each task, in seconds."""
    found = []
    for task in tasks:
        rng = np.random.default_rng(seed)
        candidates = [*task.defaults(), *task.spread(_SAMPLES, rng)]
        found.append(float(prior.predict(candidates).latency.min()))
    return found
