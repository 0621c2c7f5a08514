"""A simulated GPU with an energy meter, to judge the search for energy where no meter is at hand.

Nothing here is a measurement. What it is for: its form is unlike that of the cost models' prior, so
that a search which does well here does not do so because the model is the truth.

    seconds  a p-norm of the terms of memory and units (the prior takes the longest), with hidden
             rates, times hidden factors of single knob values and of pairs of them
    clock    falls where the power would pass the cap, and stretches the units' terms
    watts    idle + leakage, exponential in the temperature + what is moved and computed in a second
             at the clock's voltage squared, times hidden factors of knob values (data and toggling)
    degrees  follow the power of what ran before
    meter    multiplies by noise a window, rounds to its quantum; the load's drift stays in
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattune.compiler.search.energy_stage import SPREAD, WINDOWS
from wattune.schedules.candidate import Candidate, Conditions, Measurement, Provenance, Record
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target
from wattune.schedules.template import template_of

# Of the whole device: bytes a second, and instructions a second of any unit.
_RATES = {"memory": 2.6e12, "l2": 5.5e12, "l1": 2.2e13}
_UNIT_RATE = 6.0e12
_LAUNCH = 4e-6
_NORM = 3.0
_IDLE, _LEAKAGE, _CAP = 70.0, 35.0, 620.0
# Picojoules a byte and an instruction of a warp.
_BYTE = {"memory": 42.0, "l2": 9.0, "l1": 2.5}
_INSTRUCTION = 320.0
# Standard deviations of the logarithms of hidden factors: of latency between these two, by device,
# so that on some of them many schedules tie and on others few; of power. Pairs have a third.
_LEAST_SLOWER, _MOST_SLOWER = 0.01, 0.10
_HOTTER = 0.05
_PAIR = 1 / 3
_TIMING_NOISE = 0.004
_WARMING = 0.3
_QUANTUM = 1e-3
_WINDOW_SECONDS = 2.0


@dataclass(frozen=True)
class Truth:
    """What a candidate takes at 60 degrees, without noise: seconds and joules of a call."""

    seconds: float
    joules: float


class SimulatedGpu:
    """A device whose latencies and energies are made up; ``spread`` is the meter's, relative."""

    energy_source = "nvml"

    def __init__(self, target: Target, seed: int = 0, spread: float = 0.006) -> None:
        """Draw one device: hidden factors and noise follow from the seed."""
        self.seed, self.spread = seed, spread
        self.energies = 0
        self._rng = np.random.default_rng([seed, 1])
        self._fingerprint = fingerprint(target)
        self._slower = float(self._rng.uniform(_LEAST_SLOWER, _MOST_SLOWER))
        self._degrees = 58.0
        self._created = itertools.count(1.0)

    def close(self) -> None:
        """Nothing is held."""

    def timed(self, candidate: Candidate) -> Record:
        """Return a record without energy."""
        return self._record(candidate, None)

    def metered(self, candidate: Candidate) -> Record:
        """Return a record with energy, and count it."""
        self.energies += 1
        return self._record(candidate, *self._metered(candidate))

    def truth(self, candidate: Candidate) -> Truth:
        """Return what no meter can see: the candidate at a fixed temperature, without noise."""
        return self._at(candidate, 60.0)

    def _metered(self, candidate: Candidate) -> tuple[float, dict[str, float]]:
        """Return joules and what is said of them; the device grows warm meanwhile."""
        windows = []
        for _ in range(2):
            found = self._at(candidate, self._degrees)
            watts = found.joules / found.seconds
            self._degrees += _WARMING * (35 + watts / 12 - self._degrees)
            total = watts * _WINDOW_SECONDS * (1 + self.spread * self._rng.standard_normal())
            total = _QUANTUM * round(total / _QUANTUM)
            windows.append(total * found.seconds / _WINDOW_SECONDS)
        mean = float(np.mean(windows))
        spread = float(np.std(windows, ddof=1)) / mean
        return mean, {SPREAD: spread, WINDOWS: float(len(windows))}

    def _record(
        self, candidate: Candidate, joules: float | None, facts: dict[str, float] | None = None
    ) -> Record:
        noise = 1 + _TIMING_NOISE * np.abs(self._rng.standard_normal(5))
        seconds = tuple(float(self.truth(candidate).seconds * factor) for factor in noise)
        source = "none" if joules is None else self.energy_source
        return Record(
            candidate,
            Conditions(temperature_c=self._degrees),
            Provenance(
                template_of(candidate).source_hash(),
                self._fingerprint,
                created=next(self._created),
            ),
            Measurement(seconds, joules, source),
            facts=facts or {},
        )

    def _at(self, candidate: Candidate, degrees: float) -> Truth:
        template = template_of(candidate)
        problem, target = candidate.problem, candidate.target
        counts = template.counts(problem, target, candidate.schedule.values)
        memory = {k: counts.bytes.get(k, 0.0) / rate for k, rate in _RATES.items()}
        units = sum(counts.operations.values()) / _UNIT_RATE
        busy = min(1.0, counts.parallelism / (2.0 * target.cores)) ** 0.5
        slower = math.exp(self._hidden(candidate, "seconds", self._slower))
        hotter = math.exp(self._hidden(candidate, "watts", _HOTTER))
        moved = sum(_BYTE[k] * counts.bytes.get(k, 0.0) for k in _BYTE)
        dynamic = 1e-12 * (moved + _INSTRUCTION * sum(counts.operations.values())) * hotter
        leakage = _LEAKAGE * math.exp((degrees - 60.0) / 45.0)
        clock = 1.0
        for _ in range(6):
            terms = [*memory.values(), units / clock]
            norm = sum(term**_NORM for term in terms) ** (1 / _NORM)
            seconds = norm * slower / busy + _LAUNCH
            watts = _IDLE + leakage + dynamic * clock**2 / seconds
            clock *= min(1.0, (_CAP / watts) ** 0.4)
        return Truth(seconds, seconds * watts)

    def _hidden(self, candidate: Candidate, what: str, scale: float) -> float:
        """Add the hidden logarithms of all knob values and of all pairs of them."""
        knobs = [f"{name}={value}" for name, value in candidate.schedule.knobs]
        pairs = [f"{one} {other}" for one, other in itertools.combinations(knobs, 2)]
        return sum(
            scale * share * self._normal(f"{what} {candidate.schedule.template} {text}")
            for share, texts in ((1.0, knobs), (_PAIR, pairs))
            for text in texts
        )

    def _normal(self, text: str) -> float:
        """Return a number of a standard normal distribution that belongs to a text."""
        rng = np.random.default_rng([self.seed, zlib.crc32(text.encode())])
        return float(rng.standard_normal())


class MeasuringAll(SimulatedGpu):
    """A runner that measures every candidate's energy with its latency."""

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield records with energy."""
        return map(self.metered, candidates)


class MeasuringApart(SimulatedGpu):
    """A runner that measures energy where it is asked to."""

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield records without energy."""
        return map(self.timed, candidates)

    def energy(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield records with energy."""
        return map(self.metered, candidates)
