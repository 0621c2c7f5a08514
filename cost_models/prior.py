"""The physical prior: a roofline over a candidate's counts. Crude, but right about the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from wattune.cost_models.gpu_rates import LAUNCH, gpu_rates, memory_of
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# Where nothing was measured: what one core (or SM) of common machines does in a clock. Rates are
# guessed low rather than high, so that a term which is not counted cannot hide behind them.
_CPU_CLOCK, _CUDA_CLOCK = 2.5e9, 1.5e9
_CPU_BYTES = {"l1": 64.0, "l2": 24.0, "l3": 8.0, "memory": 4.0}
_CUDA_BYTES = {"l1": 128.0, "l2": 40.0, "l3": 40.0, "memory": 15.0}
_OPERATIONS = {"dot": 1.0, "shuffle": 1.0, "alu": 2.0, "tile": 1 / 16}
# Every port that can multiply can also add; x86 cores shuffle whole vectors on one of two ports.
_SHARED_PORTS = {"alu": ("dot", 1.0), "shuffle": ("dot", 0.5)}
# A measurement this many times below the guess is no measurement.
_DISTURBED = 10.0
# A socket's memory does not scale with its cores.
_CPU_MEMORY_LIMIT = 100e9
# Seconds: one call, and waking and joining each further thread.
_CALL, _WAKE = 0.5e-6, 1.5e-6


@dataclass(frozen=True)
class Rates:
    """What a target can do at most, all its threads together.

    ``bytes`` per second by memory level, ``operations`` (instructions) per second by unit,
    ``launch``: seconds to start and end a kernel.
    """

    bytes: Mapping[str, float]
    operations: Mapping[str, float]
    launch: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "bytes": dict(self.bytes),
            "operations": dict(self.operations),
            "launch": self.launch,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build rates from `to_json`'s data."""
        return cls(dict(data["bytes"]), dict(data["operations"]), float(data["launch"]))


@dataclass(frozen=True)
class Roofline:
    """A predicted time and what it is made of, in seconds.

    ``terms``: by memory level and unit, as if all threads were busy; ``imbalance`` >= 1: how much
    longer the busiest thread works than the mean one.
    """

    terms: dict[str, float]
    imbalance: float
    launch: float

    @property
    def bound(self) -> str:
        """Name the longest term."""
        return max(self.terms, key=self.terms.__getitem__)

    @property
    def seconds(self) -> float:
        """Return the whole time: the longest term, stretched by imbalance, and the launch."""
        return self.terms[self.bound] * self.imbalance + self.launch


def workers(target: Target) -> int:
    """Return how many cores or SMs share the work."""
    return target.cores if target.kind == "cuda" else target.threads


def default_rates(target: Target) -> Rates:
    """Guess the rates of a target that nobody has measured: a GPU's by public figures."""
    if target.kind == "cuda" and (known := _public_rates(target)):
        return known
    cuda, count = target.kind == "cuda", workers(target)
    clocks = (_CUDA_CLOCK if cuda else _CPU_CLOCK) * count
    rates = {name: clocks * width for name, width in (_CUDA_BYTES if cuda else _CPU_BYTES).items()}
    if not cuda:
        rates["memory"] = min(rates["memory"], _CPU_MEMORY_LIMIT)
    return Rates(
        bytes=rates,
        operations={name: clocks * width for name, width in _OPERATIONS.items()},
        launch=_CALL + _WAKE * (0 if cuda else count - 1),
    )


def _public_rates(target: Target) -> Rates | None:
    """Return the rates of a GPU whose architecture is known."""
    known = gpu_rates(target.arch)
    if known is None:
        return None
    clocks = known.clock * workers(target)
    units = ("matrix", "alu", "special", "shuffle")
    return Rates(
        bytes={
            "memory": memory_of(target.device, known),
            "l2": known.l2 * clocks,
            "l3": known.l2 * clocks,
            "l1": known.l1 * clocks,
        },
        operations={unit: getattr(known, unit) * clocks for unit in units},
        launch=LAUNCH,
    )


def measured_rates(
    target: Target,
    read_bandwidth: Callable[[int, int], float],
    operations: Mapping[str, float] | None = None,
) -> Rates:
    """Return rates from measured limits.

    ``read_bandwidth(footprint in bytes, threads)`` gives bytes per second; ``operations`` the
    measured instructions per second by unit, all threads together. What was not measured, or under
    a disturbance, stays guessed.
    """
    guess, count = default_rates(target), workers(target)
    # Well inside each level and outside the one before; memory far outside the last.
    footprints = {
        "l1": target.l1 * count // 2,
        "l2": target.l2 * count // 2,
        "l3": max(target.l3 // 2, min(target.l2 * count * 2, target.l3)),
        "memory": min(max(2 * target.l3, 512 << 20), target.memory // 4),
    }
    measured = {name: read_bandwidth(size, target.threads) for name, size in footprints.items()}
    units = _plausible(operations or {}, guess.operations)
    return Rates(
        bytes={**guess.bytes, **_plausible(measured, guess.bytes)},
        operations={**guess.operations, **_implied(units, guess.operations), **units},
        launch=guess.launch,
    )


def _plausible(measured: Mapping[str, float], guess: Mapping[str, float]) -> dict[str, float]:
    """Drop what is far below even the cautious guess: something else was running meanwhile."""
    return {
        name: rate
        for name, rate in measured.items()
        if rate > guess.get(name, 0.0) / _DISTURBED and math.isfinite(rate)
    }


def _implied(units: Mapping[str, float], guess: Mapping[str, float]) -> dict[str, float]:
    """Raise the guesses of units which share their ports with a measured one."""
    return {
        name: max(guess[name], share * units.get(unit, 0.0))
        for name, (unit, share) in _SHARED_PORTS.items()
    }


def imbalance(parallelism: float, target: Target) -> float:
    """Return the busiest worker's share over the mean one's, for tasks of equal size."""
    count, tasks = workers(target), max(parallelism, 1.0)
    return math.ceil(tasks / count) * count / tasks


def roofline(counts: Counts, target: Target, rates: Rates, mode: str = "cold") -> Roofline:
    """Predict the time of a candidate from its counts.

    Hot, what fits a cache comes from there instead of from memory.
    """
    terms: dict[str, float] = {}
    for level, amount in counts.bytes.items():
        source = _home(amount, target) if mode == "hot" and level == "memory" else level
        terms[level] = amount / rates.bytes.get(source, rates.bytes["l1"])
    for unit, amount in counts.operations.items():
        terms[unit] = amount / rates.operations.get(unit, rates.operations["alu"])
    return Roofline(terms or {"memory": 0.0}, imbalance(counts.parallelism, target), rates.launch)


def _home(footprint: float, target: Target) -> str:
    """Return the nearest level that holds the footprint."""
    count = workers(target)
    sizes = {"l1": target.l1 * count, "l2": target.l2 * count, "l3": target.l3}
    return next((name for name, size in sizes.items() if footprint <= size), "memory")
