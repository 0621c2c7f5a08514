"""How many energies are worth measuring: the dynamic updating strategy, as pure arithmetic.

An energy takes seconds where a latency takes a tenth of one. So a round measures latencies first;
of those near the best latency only a fraction is measured for energy, chosen by the model, and the
fraction follows from how well the model has foretold the energies measured so far. The idea of a
fraction that follows the model's signal-to-noise ratio is that of "Automating Energy-Efficient GPU
Kernel Generation" (arXiv 2411.18873); the quantities here are ours.

Everything is said of z = ln(energy / latency), the logarithm of mean power: energy is mostly power
times time, and a model that only knows the time foretells energies well without knowing anything of
energy.

    signal   variance of z over all energies measured for the problem
    error    mean square of (z - what was predicted before), over the last `Policy.window` energies
    noise    variance of a measured z, from the spread of its windows
    SNR      signal / error                      ceiling   signal / noise
    skill    (1 - 1 / SNR) / (1 - 1 / ceiling)   the explained share of what can be explained

The signal is that of all energies, not of the last ones: those are chosen to be low, and among
equally low ones no model could show any skill. The fraction follows the skill, not the SNR, which
noise alone can keep low, nor SNR / ceiling, which asks of a model to be as exact as the meter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """The constants of the strategy.

    Until ``learning`` energies are known, the fraction stays 1, and where few candidates are near
    the best latency, the next fastest are taken too, up to ``early`` a round: a model learns power
    from any candidate. Then the fraction is halved at a skill of ``good`` and doubled below
    ``poor``, between ``smallest`` and 1; ``least`` energies are measured a round if so many are
    considered, the incumbent's and a random one's among them. ``window``: how many of the last
    predictions tell the error. ``drift``: how many standard deviations an incumbent may move before
    all is doubted. ``most``: beside the ``least`` of each round, energies are at most this share of
    the latencies, those that are still to come among them: early energies steer the search, and a
    badly foretold device cannot cost as much as measuring everything.
    """

    learning: int = 24
    early: int = 6
    good: float = 0.7
    poor: float = 0.4
    least: int = 4
    smallest: float = 1 / 16
    window: int = 24
    drift: float = 4.0
    most: float = 0.25


@dataclass(frozen=True)
class Forecast:
    """A measured z, what was predicted before it, and the relative spread of its windows."""

    measured: float
    predicted: float
    spread: float | None = None


@dataclass(frozen=True)
class Trust:
    """What the forecasts say of the model; None where nothing can be said. Ratios in decibels."""

    forecasts: int = 0
    snr_db: float | None = None
    ceiling_db: float | None = None
    skill: float | None = None


@dataclass(frozen=True)
class Decision:
    """What a round did about energy, and why: plain data for the database and the report.

    Of ``considered`` candidates within the slack that had no energy yet, ``measured`` were
    measured, ``random`` of them as sentinels; the incumbent's energy came out ``drift`` times what
    it was. ``fraction`` is the one used, ``following`` that of the next round, for ``reason``.
    """

    considered: int
    measured: int
    random: int
    fraction: float
    following: float
    reason: str
    drift: float | None = None
    snr_db: float | None = None
    ceiling_db: float | None = None
    skill: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def trust(forecasts: Sequence[Forecast], policy: Policy) -> Trust:
    """Judge the model by what it said before each measurement."""
    if len(forecasts) < 2:
        return Trust(len(forecasts))
    signal = float(np.var([one.measured for one in forecasts], ddof=1))
    last = forecasts[-policy.window :]
    error = float(np.mean([(one.measured - one.predicted) ** 2 for one in last]))
    spreads = [one.spread for one in forecasts if one.spread is not None]
    noise = float(np.mean(np.square(spreads))) if spreads else 0.0
    if signal <= 0.0:
        return Trust(len(forecasts))
    explainable = 1 - noise / signal
    explained = 1 - error / signal
    return Trust(
        forecasts=len(forecasts),
        snr_db=_decibels(signal, error),
        ceiling_db=_decibels(signal, noise),
        skill=explained / explainable if explainable > 0 else None,
    )


def next_fraction(
    fraction: float, energies: int, found: Trust, drifted: bool, policy: Policy
) -> tuple[float, str]:
    """Return the fraction of the next round, and the reason in words."""
    if drifted:
        return 1.0, "the incumbent's energy has moved"
    if energies < policy.learning:
        return 1.0, f"fewer than {policy.learning} energies are known"
    if found.skill is None:
        less = max(fraction / 2, policy.smallest)
        return less, "energies differ by no more than their noise"
    if found.skill >= policy.good:
        return max(fraction / 2, policy.smallest), "the model foretells energy well"
    if found.skill < policy.poor:
        return min(2 * fraction, 1.0), "the model foretells energy badly"
    return fraction, "the model foretells energy fairly"


def energies_left(latencies: int, energies: int, policy: Policy) -> int:
    """Return how many energies may follow ``energies`` in a tune of so many latencies."""
    return max(policy.learning, int(policy.most * latencies)) - energies


def count_to_measure(
    considered: int, fraction: float, incumbent: bool, left: int, policy: Policy
) -> int:
    """Return how many of the considered to measure; an ``incumbent`` beside them counts too."""
    wanted = min(math.ceil(fraction * considered), left - incumbent)
    return min(considered, max(wanted, policy.least - incumbent))


def pick(predicted: Floats, count: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return the indices of the least predicted and of one random sentinel, ``count`` in all."""
    order = [int(at) for at in np.argsort(predicted, kind="stable")]
    if count >= len(order):
        return order, []
    chosen = order[: max(count - 1, 0)]
    rest = order[len(chosen) :]
    return chosen, [rest[int(rng.integers(len(rest)))]] if count else []


def drifted(ratio: float, spreads: Sequence[float], policy: Policy) -> bool:
    """Say whether an energy measured again differs by more than the spread of both explains."""
    if not spreads:
        return False
    noise = math.sqrt(2.0) * float(np.sqrt(np.mean(np.square(spreads))))
    return abs(math.log(ratio)) > policy.drift * noise


def _decibels(signal: float, other: float) -> float | None:
    return 10 * math.log10(signal / other) if other > 0 else None
