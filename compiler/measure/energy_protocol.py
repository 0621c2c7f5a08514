"""Energy by a counter that ticks: windows from tick to tick under a load that goes on through both.

A GPU's energy counter changes some ten times a second. Two readings at any two moments are wrong by
up to a tick's worth of energy each: 10 % of a second. Here a kernel loops without a pause, the
counter is polled a thousand times a second, and a window begins and ends where it ticks, so that
the load is the same on both sides of each edge and no error is left but that of a poll. Source:
Part-time Power Measurements (arXiv 2312.02741) on counters and their update periods.

Pure arithmetic over a counter, a load and a clock that are given: tested against a simulated one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from wattune.errors import DeviceError

POLL_SECONDS = 1e-3
CALIBRATION_SECONDS = 2.0
LEAST_TICKS = 20
# Relative spread of windows that is good enough, and how many windows are taken otherwise.
SPREAD = 0.01
MOST_WINDOWS = 3
# A temperature counts as steady when it changed by less than a degree over so many seconds.
STEADY_SECONDS = 3.0
STEADY_DEGREES = 1.0
MOST_WARMING = 10.0
# A counter that does not tick in this time is none.
MOST_SILENCE = 3.0


@dataclass(frozen=True)
class Status:
    """What a device says of itself: degrees, clock in MHz, reasons that hold the clock back."""

    temperature: float = 0.0
    clock: float = 0.0
    throttled: int = 0


class Counter(Protocol):
    """A counter of millijoules that only grows, in ticks."""

    def millijoules(self) -> int:
        """Read the counter."""

    def status(self) -> Status:
        """Return temperature, clock and what holds it back."""


class Load(Protocol):
    """Work that a device does without a pause as long as somebody calls `advance`."""

    def advance(self) -> float:
        """Hand out more work where that is needed; returns the calls that have ended so far."""


@dataclass(frozen=True)
class Clock:
    """Time and a way to let it pass, both in seconds."""

    now: Callable[[], float]
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class Sample:
    """A poll: when, what the counter said, how many calls had ended."""

    time: float
    millijoules: int
    calls: float


@dataclass(frozen=True)
class Calibration:
    """How a counter ticks: every ``period`` seconds, by multiples of ``quantum`` millijoules."""

    period: float
    quantum: int
    watts: float

    @property
    def window(self) -> float:
        """Return how long a window must be: twenty ticks, a second at least."""
        return max(1.0, LEAST_TICKS * self.period)


@dataclass(frozen=True)
class Window:
    """What was used from one tick to another."""

    seconds: float
    joules: float
    calls: float

    @property
    def per_call(self) -> float:
        """Return joules a call."""
        return self.joules / self.calls


@dataclass(frozen=True)
class Energy:
    """Joules of one call, and how well they are known."""

    joules: float
    spread: float
    watts: float
    windows: int


def ticks(samples: Sequence[Sample]) -> list[Sample]:
    """Return the ticks: halfway between the polls around each, with the value after it."""
    return [
        Sample((a.time + b.time) / 2, b.millijoules, (a.calls + b.calls) / 2)
        for a, b in pairwise(samples)
        if b.millijoules != a.millijoules
    ]


def calibration(samples: Sequence[Sample]) -> Calibration:
    """Learn a counter's period and quantum from polls; `DeviceError` where it hardly ticks."""
    found = ticks(samples)
    if len(found) < 3:
        seconds = samples[-1].time - samples[0].time if samples else 0.0
        raise DeviceError(
            f"the energy counter ticked {len(found)} times in {seconds:.1f} s: it measures nothing"
        )
    gaps = np.diff([tick.time for tick in found])
    steps = np.diff([tick.millijoules for tick in found])
    passed = found[-1].time - found[0].time
    joules = 1e-3 * (found[-1].millijoules - found[0].millijoules)
    return Calibration(float(np.median(gaps)), math.gcd(*map(int, steps)), joules / passed)


def window(samples: Sequence[Sample]) -> Window:
    """Return the window between the first and the last tick of the samples.

    Calls end in bursts, a graph at a time; a line through all polls knows their rate far better
    than the two polls at the edges do.
    """
    found = ticks(samples)
    first, last = found[0], found[-1]
    inside = [s for s in samples if first.time <= s.time <= last.time]
    times = np.array([s.time for s in inside])
    rate = float(np.polyfit(times - times.mean(), [s.calls for s in inside], 1)[0])
    seconds = last.time - first.time
    return Window(seconds, 1e-3 * (last.millijoules - first.millijoules), rate * seconds)


class Polling:
    """One measurement: polls counter and load at the pace of the clock."""

    def __init__(self, counter: Counter, load: Load | None, clock: Clock) -> None:
        """Measure a load, or the idle device where it is None."""
        self._counter, self._load, self._clock = counter, load, clock

    def poll(self) -> Sample:
        """Let a millisecond pass and look."""
        self._clock.sleep(POLL_SECONDS)
        calls = self._load.advance() if self._load else 0.0
        return Sample(self._clock.now(), self._counter.millijoules(), calls)

    def during(self, seconds: float) -> list[Sample]:
        """Poll for so many seconds."""
        samples = [self.poll()]
        while samples[-1].time < samples[0].time + seconds:
            samples.append(self.poll())
        return samples

    def until_tick(self, last: Sample) -> list[Sample]:
        """Poll until the counter ticks; `DeviceError` where it never does."""
        samples = [last, self.poll()]
        while samples[-1].millijoules == last.millijoules:
            samples.append(self.poll())
            if samples[-1].time > last.time + MOST_SILENCE:
                raise DeviceError(f"the energy counter did not tick for {MOST_SILENCE:g} s")
        return samples

    def warm(self) -> None:
        """Run the load until the temperature stays where it is, or for `MOST_WARMING` seconds."""
        start = self._clock.now()
        while True:
            before = self._counter.status().temperature
            self.during(STEADY_SECONDS)
            change = abs(self._counter.status().temperature - before)
            if change < STEADY_DEGREES or self._clock.now() > start + MOST_WARMING:
                return

    def aligned(self, seconds: float) -> tuple[Window, bool]:
        """Return a window of at least so many seconds, and whether the clock was held alike."""
        begin = self._counter.status().throttled
        samples = self.until_tick(self.poll())
        samples += self.during(seconds)
        samples += self.until_tick(samples[-1])[1:]
        return window(samples), self._counter.status().throttled == begin


def calibrate(counter: Counter, clock: Clock, load: Load | None = None) -> Calibration:
    """Learn how the counter ticks; without a load also what the idle device draws."""
    return calibration(Polling(counter, load, clock).during(CALIBRATION_SECONDS))


def measure(counter: Counter, load: Load, clock: Clock, known: Calibration) -> Energy:
    """Return the joules of a call of the load.

    Warms up first. Takes two windows, and a third where they differ by more than `SPREAD`;
    windows in which the clock came to be held back, or ceased to be, do not count, unless all did.
    """
    run = Polling(counter, load, clock)
    run.warm()
    good: list[Window] = []
    poor: list[Window] = []
    while len(good) < MOST_WINDOWS and len(good) + len(poor) < 2 * MOST_WINDOWS:
        found, steady = run.aligned(known.window)
        (good if steady else poor).append(found)
        if len(good) >= 2 and spread(good) <= SPREAD:
            break
    if not good:
        raise DeviceError("the GPU's clocks were throttled anew in every window")
    joules = sum(w.joules for w in good) / sum(w.calls for w in good)
    watts = sum(w.joules for w in good) / sum(w.seconds for w in good)
    return Energy(joules, spread(good), watts, len(good))


def spread(windows: Sequence[Window]) -> float:
    """Return the standard deviation of the windows' joules a call over their mean."""
    values = [w.per_call for w in windows]
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 else math.inf
