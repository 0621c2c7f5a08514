"""Objectives: what tuning minimises, and the front of everything that is not beaten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.errors import TargetError, UnknownNameError
from wattune.schedules.candidate import Record

Floats = NDArray[np.float64]

NAMES = ("latency", "energy", "edp", "pareto")
ALLOWED = (*NAMES, "energy@5% (any percentage from 0 to 100)")


@dataclass(frozen=True)
class Objective:
    """Latency, energy, their product, or the least energy within ``slack`` of the least latency.

    ``pareto`` searches for the whole front of the two; where one must win it is by the product.
    """

    name: str
    kind: str = "latency"
    slack: float | None = None

    @property
    def needs_energy(self) -> bool:
        """Say whether records without measured energy are useless."""
        return self.kind != "latency"

    @property
    def decisive(self) -> Objective:
        """Return the objective by which one candidate wins, whatever else there is."""
        return Objective("edp", "edp") if self.kind == "pareto" else self

    def scores(
        self, latency: Floats, joules: Floats | None = None, best: float | None = None
    ) -> Floats:
        """Return what to minimise, one number a candidate; only its order matters.

        ``latency`` in seconds, ``joules`` per run (NaN where nothing was measured, which scores
        infinite). ``best`` is the least latency to hold the slack against; by default the least
        one given. Scores of ``pareto`` are places among those given.
        """
        if not self.needs_energy or len(latency) == 0:
            return latency
        energy = np.full(len(latency), np.nan) if joules is None else joules
        energy = np.where(np.isfinite(energy), energy, np.inf)
        if self.kind == "edp":
            return energy * latency
        if self.kind == "pareto":
            return front_places(latency, energy)
        if self.slack is None:
            return energy
        limit = (1 + self.slack) * (float(np.min(latency)) if best is None else best)
        # Too slow ones come after all others, the nearest to the limit first.
        finite = energy[np.isfinite(energy)]
        worst = float(np.max(finite)) if finite.size else 1.0
        late = np.where(np.isfinite(energy), worst * (1 + latency / limit), np.inf)
        return np.where(latency <= limit, energy, late)


LATENCY = Objective("latency")


def parse_objective(text: str | Objective) -> Objective:
    """Read one of `ALLOWED`, with any percentage; else `UnknownNameError`."""
    if isinstance(text, Objective):
        return text
    if text in NAMES:
        return Objective(text, text)
    kind, at, rest = text.partition("@")
    if kind == "energy" and at and rest.endswith("%"):
        try:
            percent = float(rest[:-1])
        except ValueError:
            percent = math.nan
        if 0 <= percent <= 100:
            return Objective(text, "energy", percent / 100)
    raise UnknownNameError("objective", text, ALLOWED)


def joules_of(records: Sequence[Record]) -> Floats:
    """Return measured energy per run, NaN where there is none."""
    return np.array([math.nan if r.joules is None else r.joules for r in records], np.float64)


def choose(records: Sequence[Record], objective: str | Objective = LATENCY) -> Record | None:
    """Return the record that the objective likes best, or None where none is valid.

    Raises `TargetError` where the objective needs energy and no record has any.
    """
    wanted, valid = parse_objective(objective).decisive, [r for r in records if r.valid]
    if not valid:
        return None
    if wanted.needs_energy and all(record.joules is None for record in valid):
        raise no_energy(wanted, "none of the records has a measured energy")
    latency = np.array([record.latency for record in valid])
    return valid[int(np.argmin(wanted.scores(latency, joules_of(valid))))]


def no_energy(objective: Objective, reason: str) -> TargetError:
    """Return the error of an energy objective without measured energy."""
    return TargetError(
        f"objective {objective.name!r} needs measured energy: {reason}; allowed here: 'latency'"
    )


def front(records: Sequence[Record]) -> list[Record]:
    """Return the valid records that no other beats in both latency and energy, fastest first.

    A record without energy stays only where nothing else is as fast.
    """
    valid = [record for record in records if record.valid]
    energy = {id(r): math.inf if r.joules is None else r.joules for r in valid}
    found: list[Record] = []
    for record in sorted(valid, key=lambda r: (r.latency, energy[id(r)])):
        if not found or energy[id(record)] < energy[id(found[-1])]:
            found.append(record)
    return found


def front_places(latency: Floats, energy: Floats) -> Floats:
    """Return places by non-dominated sorting, [n]: the first front has 1 to 1.5, the next 2 to 2.5.

    Within a front the ends come first, then what has the most room around it, so that the best are
    spread over the front (the crowding distance of NSGA-II: Deb et al., 2002). Infinite where the
    energy is.
    """
    places = np.full(len(latency), np.inf)
    left = np.flatnonzero(np.isfinite(latency) & np.isfinite(energy))
    level = 1.0
    while left.size:
        order = left[np.lexsort((energy[left], latency[left]))]
        least = np.minimum.accumulate(np.append(np.inf, energy[order][:-1]))
        # Twins share a front: only the first of them would be below what came before.
        twins = np.append(False, (np.diff(latency[order]) == 0) & (np.diff(energy[order]) == 0))
        beaten = energy[order] >= least
        for at in np.flatnonzero(twins):
            beaten[at] = beaten[at - 1]
        first = order[~beaten]
        room = _room(np.log(latency[first])) + _room(np.log(energy[first]))
        places[first] = level + 0.5 / (1 + room)
        left, level = order[beaten], level + 1
    return places


def _room(values: Floats) -> Floats:
    """Return the gap around each value as a share of all; infinite at the ends, [n]."""
    order = np.argsort(values, kind="stable")
    gaps = np.full(len(values), np.inf)
    span = float(np.ptp(values))
    if len(values) > 2:
        inner = values[order[2:]] - values[order[:-2]]
        gaps[order[1:-1]] = inner / span if span else 0.0
    return gaps
