"""Timing one verified kernel: how many calls, over how many copies, with what result."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.cc import cached
from wattune.compiler.measure.ffi import Call, raised
from wattune.compiler.measure.pool import Rotation
from wattune.errors import MeasureError

HARNESS = Path(__file__).with_name("harness.c")

BUDGET_SECONDS = {"hot": 0.08, "cold": 0.16}
LEAST_SAMPLES = 15
MOST_SAMPLES = 4000
# A candidate this much slower than the best known one is measured with a few calls only.
SLOW = 5.0
FEW_SAMPLES = 3
# Where the least number of samples takes this many budgets, there are fewer.
MOST_BUDGETS = 5
# Shorter calls are timed in batches, so that reading the clock costs less than 1 %.
SAMPLE_SECONDS = 4e-6
WARM_SECONDS = 0.005
KEPT_SAMPLES = 31


class _Rotation(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("addresses", ctypes.c_void_p),
    ]


def harness_library() -> Path:
    """Return the compiled timing loop."""
    return cached(HARNESS, (), ".so")


@cache
def _harness() -> ctypes.CDLL:
    library = ctypes.CDLL(str(harness_library()))
    library.wattune_time.restype = ctypes.c_int64
    return library


@dataclass(frozen=True)
class Plan:
    """How many samples of how many calls each."""

    samples: int
    batch: int


def too_slow(seconds: float, best: float | None) -> bool:
    """Say whether a candidate is so far behind the best known one that few runs are enough."""
    return best is not None and seconds > SLOW * best


def plan(seconds: float, budget: float, copies: int | None) -> Plan:
    """Decide how often to call a kernel that takes about ``seconds``.

    ``copies`` is the length of one rotation, None where nothing rotates.
    """
    batch = max(1, round(SAMPLE_SECONDS / seconds))
    least = LEAST_SAMPLES if copies is None else min(LEAST_SAMPLES, max(FEW_SAMPLES, copies))
    return Plan(min(MOST_SAMPLES, max(least, round(budget / (seconds * batch)))), batch)


def summary(samples: NDArray[np.float64]) -> tuple[float, ...]:
    """Reduce many samples to few that keep the minimum, the quartiles and the median."""
    if len(samples) > KEPT_SAMPLES:
        samples = np.quantile(samples, np.linspace(0, 1, KEPT_SAMPLES))
    return tuple(float(s) for s in samples)


class Timer:
    """Calls one kernel over its rotating arguments; the rotation goes on where it stopped."""

    def __init__(
        self,
        address: int,
        call: Call,
        rotations: Sequence[tuple[int, Rotation]],
        position: float = 0.0,
    ) -> None:
        """Rotate the arguments of these indices, from a position between 0 and 1 on."""
        self._address = address
        self._call = call
        self._kept = [r.addresses for _, r in rotations]
        self._sets = min(map(len, self._kept), default=1)
        self._next = int(position * self._sets) % self._sets
        self._rotations = (_Rotation * len(rotations))(
            *(_Rotation(call.slot(i), r.addresses.ctypes.data) for i, r in rotations)
        )

    @property
    def position(self) -> float:
        """Return which part of the rotation comes next, between 0 and 1."""
        return self._next / self._sets

    def run(self, samples: int, batch: int = 1, limit: float = 1e9) -> NDArray[np.float64]:
        """Return the seconds of one call, for each sample."""
        seconds = np.empty(samples, dtype=np.float64)
        done = _harness().wattune_time(
            ctypes.c_void_p(self._address),
            self._call.arguments,
            ctypes.c_int32(self._call.count),
            self._rotations,
            ctypes.c_int32(len(self._rotations)),
            ctypes.c_int64(self._sets),
            ctypes.c_int64(self._next),
            ctypes.c_int64(samples),
            ctypes.c_int64(batch),
            ctypes.c_double(limit),
            seconds.ctypes.data_as(ctypes.c_void_p),
        )
        if done < 0:
            raise MeasureError("wrong_result", f"kernel answered with an error: {raised()}")
        self._next = (self._next + done * batch) % self._sets
        return seconds[:done]

    def measure(self, budget: float, rotate: bool, best: float | None) -> tuple[float, ...]:
        """Return latency samples in seconds, the first runs dropped; few of a slow candidate.

        ``best`` is the fastest latency known for the problem.
        """
        first = self.run(FEW_SAMPLES, limit=budget)
        seconds = float(first.min())
        if too_slow(seconds, best):
            return summary(first)
        chosen = plan(seconds, budget, self._sets if rotate else None)
        self.run(MOST_SAMPLES, chosen.batch, WARM_SECONDS)
        return summary(self.run(chosen.samples, chosen.batch, MOST_BUDGETS * budget))
