"""What counts as a candidate's latency and energy once it has several records.

A *confirmation* is a record of an interleaved re-measurement, marked by the fact `SESSION`: the
time at which its session ended. Within a session candidates were measured in turn, so that drift
of the machine hit all of them alike; figures of different sessions, or of single measurements, are
compared only where nothing better is there. So:

* a candidate whose newest record is a failure is out;
* a candidate's figures are those of its newest confirmation, or else those of its fastest record:
  what disturbs a measurement makes it longer, hardly ever shorter; an energy that this one lacks is
  that of the newest record which has one;
* within a layout only candidates of the problem's newest session count, if it has any there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wattune.compiler.measure.confirm import SESSION, is_confirmation
from wattune.compiler.objective import Objective
from wattune.errors import UnknownNameError
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.template import Layout, layout_of, template_of


@dataclass(frozen=True)
class Standing:
    """A candidate's figures, and the record that stands for it."""

    candidate: Candidate
    layout: Layout
    latency: float
    joules: float | None
    session: float
    record: Record

    @property
    def confirmed(self) -> bool:
        """Say whether the figures come from an interleaved re-measurement."""
        return self.session > 0


def eligible(record: Record) -> bool:
    """Say whether a record was made by the source that its template has now."""
    try:
        template = template_of(record.candidate)
    except UnknownNameError:
        return False
    return template.source_hash() == record.provenance.source_hash


def fastest(records: Sequence[Record]) -> Record:
    """Return the record of the least latency."""
    return min(records, key=lambda record: record.latency)


def one_a_trial(records: Sequence[Record]) -> list[Record]:
    """Leave confirmations out, and keep the fastest record of every candidate, in their order."""
    found: dict[Schedule, list[Record]] = {}
    for record in records:
        if not is_confirmation(record):
            found.setdefault(record.candidate.schedule, []).append(record)
    return [fastest(mine) for mine in found.values()]


def standings(records: Sequence[Record]) -> list[Standing]:
    """Return the standing of every candidate of one problem whose newest record is valid."""
    found: dict[Schedule, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.provenance.created):
        found.setdefault(record.candidate.schedule, []).append(record)
    return [_standing(mine) for mine in found.values() if mine[-1].valid]


def _standing(records: Sequence[Record]) -> Standing:
    confirmed = [r for r in records if r.valid and is_confirmation(r)]
    record = confirmed[-1] if confirmed else fastest(records)
    # Energy may have been measured after latency, in a record of its own.
    energies = [r.joules for r in records if r.joules is not None]
    return Standing(
        record.candidate,
        layout_of(record.candidate),
        record.latency,
        energies[-1] if record.joules is None and energies else record.joules,
        record.facts.get(SESSION, 0.0),
        record,
    )


def scored(found: Sequence[Standing], objective: Objective) -> list[tuple[float, Standing]]:
    """Return standings with their scores, the best first."""
    if not found:
        return []
    latency = np.array([s.latency for s in found])
    joules = np.array([np.nan if s.joules is None else s.joules for s in found])
    scores = objective.scores(latency, joules)
    return [(float(scores[at]), found[at]) for at in np.argsort(scores, kind="stable")]


def best_by_layout(
    found: Sequence[Standing], objective: Objective
) -> Mapping[Layout, tuple[float, Standing]]:
    """Return the best standing of each layout and its score, by the newest session where it can.

    Where energy counts, candidates without measured energy do not.
    """
    if objective.needs_energy:
        found = [standing for standing in found if standing.joules is not None]
    newest = max((s.session for s in found), default=0.0)
    trusted = {s.layout for s in found if s.confirmed and s.session == newest}
    counting = [s for s in found if s.layout not in trusted or s.session == newest]
    best: dict[Layout, tuple[float, Standing]] = {}
    for score, standing in scored(counting, objective.decisive):
        best.setdefault(standing.layout, (score, standing))
    return best
