"""Confirmation: finalists measured in turn, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from wattune.compiler.measure.builder import BuildResult
from wattune.schedules.candidate import Candidate, Measurement, Record

# The fact that marks a confirmation: the time at which its session ended.
SESSION = "confirmation_session"


def interleaved(
    measure: Callable[[BuildResult, bool], Record], results: Sequence[BuildResult], rounds: int
) -> dict[Candidate, Record]:
    """Return a record of each candidate whose runs are those of all rounds.

    ``measure(result, verify)`` measures one; each is verified in the first round only, and what
    fails is out of the others.
    """
    records: dict[Candidate, list[Record]] = {result.candidate: [] for result in results}
    for turn in range(rounds):
        for result in results if turn % 2 == 0 else reversed(results):
            known = records[result.candidate]
            if not known or known[-1].valid:
                known.append(measure(result, turn == 0))
    return {candidate: merged(known) for candidate, known in records.items()}


def marked(record: Record, session: float) -> Record:
    """Return the record as a confirmation of a session."""
    return dataclasses.replace(record, facts={**record.facts, SESSION: session})


def is_confirmation(record: Record) -> bool:
    """Say whether a record comes from an interleaved re-measurement."""
    return SESSION in record.facts


def merged(records: Sequence[Record]) -> Record:
    """Join the rounds of one candidate: all runs, the mean energy; a failure stands alone."""
    failed = next((record for record in records if not record.valid), None)
    if failed is not None:
        return failed
    measured = [record.measurement for record in records if record.measurement is not None]
    joules = [m.joules for m in measured if m.joules is not None]
    measurement = Measurement(
        tuple(second for m in measured for second in m.seconds),
        sum(joules) / len(joules) if joules else None,
        measured[-1].energy_source,
    )
    return dataclasses.replace(records[-1], measurement=measurement)
