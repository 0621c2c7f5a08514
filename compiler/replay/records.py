"""Our own records as a recording: what a database measured of one problem."""

from __future__ import annotations

from collections.abc import Sequence

from wattune.compiler.replay.recording import Recording, Row, recording
from wattune.compiler.search.standings import one_a_trial
from wattune.errors import RecordError, ScheduleError, UnknownNameError, WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import STANDARD_ERROR, Candidate, Record
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, template_of


def from_records(records: Sequence[Record], problem: str | None = None) -> Recording:
    """Build a recording of the records of one problem on one target, the fastest of each point.

    ``problem`` chooses among several; without it there must be one.
    """
    groups: dict[tuple[Problem, Target, str], list[Record]] = {}
    for record in records:
        candidate = record.candidate
        key = (candidate.problem, candidate.target, record.conditions.mode)
        groups.setdefault(key, []).append(record)
    names = {str(key[0]) for key in groups}
    chosen = [key for key in groups if problem in (None, str(key[0]))]
    if problem is not None and not chosen:
        raise UnknownNameError("problem", problem, names)
    if len(chosen) != 1:
        texts = [f"{key[0]} ({key[2]}, {key[1].threads} threads)" for key in chosen]
        raise RecordError(
            f"records of {len(chosen)} problems, targets or modes; allowed: one of "
            f"{'; '.join(texts) or 'at least one record'}"
        )
    (key,) = chosen
    mine = one_a_trial(groups[key])
    return recording(
        key[0].to_json(),
        key[1],
        [row_of(record) for record in mine],
        _defaults(mine),
        mode=key[2],
        energy_source=next((_source(r) for r in mine if r.joules is not None), "none"),
        about={"format": "Wattune records", "fingerprint": mine[0].provenance.fingerprint},
    )


def row_of(record: Record) -> Row:
    """Return a record as a row, with what its template counts, if it is still there."""
    candidate, measured = record.candidate, record.measurement
    facts = dict(record.facts)
    if measured is not None:
        facts[STANDARD_ERROR] = record.standard_error
    return Row(
        candidate.schedule.template,
        candidate.schedule.values,
        record.latency if record.valid else None,
        record.failure,
        record.joules,
        record.message,
        facts,
        _counts(candidate),
    )


def _source(record: Record) -> str:
    return record.measurement.energy_source if record.measurement else "none"


def _counts(candidate: Candidate) -> Counts | None:
    """Return the counts of a candidate; None where its template is gone or has changed."""
    try:
        template = template_of(candidate)
        values = candidate.schedule.values
        if not template.space(candidate.problem, candidate.target).contains(values):
            return None
        return template.counts(candidate.problem, candidate.target, values)
    except WattuneError:
        return None


def _defaults(records: Sequence[Record]) -> dict[str, Values]:
    """Return the default point of each template that is still there."""
    found: dict[str, Values] = {}
    for record in records:
        candidate = record.candidate
        if (name := candidate.schedule.template) not in found:
            try:
                space = template_of(candidate).space(candidate.problem, candidate.target)
                found[name] = space.default()
            except (UnknownNameError, ScheduleError):
                found[name] = {}
    return found
