"""Timing on a GPU: graphs of many calls, replayed between events.

A graph holds calls over different copies of what rotates, at least as many as fill the footprint,
and takes a millisecond or more: neither its start nor the events' resolution counts, and kernels
that are shorter than a launch are timed without the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.ffi import Call, Library
from wattune.compiler.measure.gpu_device import Event, GpuDevice, Graph
from wattune.compiler.measure.pool import Rotation
from wattune.compiler.measure.timing import (
    FEW_SAMPLES,
    LEAST_SAMPLES,
    MOST_BUDGETS,
    summary,
    too_slow,
)

# Calls and seconds of one graph. A kernel so slow that a rotation takes longer is no contender.
MOST_CALLS = 2048
MOST_GRAPH_SECONDS = 0.05
GRAPH_SECONDS = 1e-3
MOST_REPLAYS = 200
WARM_SECONDS = 0.02
# No kernel is shorter; events tell no shorter times apart.
SHORTEST = 1e-6
# A GPU's cache is emptied by this many times its size.
CACHES = 4
LEAST_FOOTPRINT = 256 << 20


def gpu_footprint(cache: int, memory: int) -> int:
    """Return how many bytes a cold measurement rotates over: several times the cache."""
    return min(max(LEAST_FOOTPRINT, CACHES * cache), memory // 4)


def calls_of(seconds: float, sets: int, length: float = GRAPH_SECONDS) -> int:
    """Return how many calls a graph holds: whole rotations, ``length`` seconds where they fit."""
    turns = max(1, round(length / (seconds * sets)))
    most = max(1, min(MOST_CALLS, round(MOST_GRAPH_SECONDS / seconds)))
    return min(most, turns * sets)


def replays_of(seconds: float, budget: float) -> int:
    """Return how often a graph that takes ``seconds`` is replayed."""
    least = min(LEAST_SAMPLES, max(FEW_SAMPLES, round(MOST_BUDGETS * budget / seconds)))
    return max(least, min(MOST_REPLAYS, round(budget / seconds)))


def replay(device: GpuDevice, graph: Graph, times: int) -> NDArray[np.float64]:
    """Return the seconds of each of so many replays of a graph."""
    marks = [Event(device) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.launch()
        mark.record()
    device.finish()
    return np.array([after.seconds_since(before) for before, after in pairwise(marks)])


class GpuTimer:
    """Calls one kernel over its rotating arguments, captured into graphs."""

    def __init__(
        self,
        device: GpuDevice,
        library: Library,
        call: Call,
        rotations: Sequence[tuple[int, Rotation]],
    ) -> None:
        """Rotate the arguments of these indices."""
        self._device = device
        self._start: Callable[[], None] = lambda: library.call("kernel", call)
        self._call = call
        self._rotations = rotations
        self._sets = min((len(r.addresses) for _, r in rotations), default=1)
        self._next = 0
        self.calls = 0
        self.graph: Graph | None = None

    def once(self) -> float:
        """Call outside of graphs, where code is loaded; returns the seconds of a second call."""
        before, after = Event(self._device), Event(self._device)
        with self._device.current():
            self._one()
            before.record()
            self._one()
            after.record()
        self._device.finish()
        return after.seconds_since(before)

    def capture(self, calls: int) -> Graph:
        """Capture so many calls, going on with the copies where the last one stopped."""

        def body() -> None:
            for _ in range(calls):
                self._one()

        self.calls, self.graph = calls, self._device.capture(body)
        return self.graph

    def _one(self) -> None:
        for index, rotation in self._rotations:
            self._call.point(index, int(rotation.addresses[self._next]))
        self._next = (self._next + 1) % self._sets
        self._start()

    def replay(self, times: int) -> NDArray[np.float64]:
        """Return the seconds of one call, for each replay of the graph."""
        assert self.graph is not None
        return replay(self._device, self.graph, times) / self.calls

    def for_load(self, seconds: float, length: float) -> tuple[Graph, int]:
        """Return a graph that takes about ``length`` seconds, and its calls of ``seconds`` each."""
        calls = calls_of(seconds, self._sets, length)
        return self.capture(calls), calls

    def measure(self, budget: float, best: float | None) -> tuple[float, ...]:
        """Return latency samples in seconds, the first replays dropped; few of a slow candidate."""
        self.capture(calls_of(max(self.once(), SHORTEST), self._sets))
        first = self.replay(FEW_SAMPLES + 1)[1:]
        seconds = float(first.min())
        if too_slow(seconds, best):
            return summary(first)
        if (calls := calls_of(seconds, self._sets)) != self.calls:
            self.capture(calls)
        each = seconds * self.calls
        self.replay(max(1, min(MOST_REPLAYS, round(WARM_SECONDS / each))))
        return summary(self.replay(replays_of(each, budget)))
