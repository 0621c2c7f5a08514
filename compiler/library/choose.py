"""Choose the candidate that serves each problem, and see that each was verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wattune.compiler.library.plan import Choice
from wattune.compiler.select import select
from wattune.errors import MeasureError, ScheduleError, TargetError, UnknownNameError
from wattune.ops import Problem
from wattune.schedules.target import Target
from wattune.schedules.template import template_of


def choose(
    problems: Sequence[Problem],
    target: Target,
    database: str | Path | None,
    objective: str,
    weights: Mapping[Problem, float] | None,
) -> list[Choice]:
    """Return one choice a problem: from the database's records, or the default schedule."""
    selections = select(problems, target, database, objective, weights)
    return [Choice(selections[p].candidate, selections[p].record) for p in problems]


def verify(choices: Sequence[Choice], target: Target, allow_unverified: bool) -> list[Choice]:
    """Run what has no verified record once and compare it with the reference.

    Raises `MeasureError` for a candidate that is wrong or crashes, `TargetError` where the target
    does not run here and that is not allowed.
    """
    missing = [choice.candidate for choice in choices if not choice.verified]
    if not missing:
        return list(choices)
    if not target.runs_here():
        if allow_unverified:
            return list(choices)
        raise TargetError(
            f"{len(missing)} of {len(choices)} kernels have no verified record, and this machine "
            f"cannot run the target ({target.lacking()}); tune and compile on such a machine, or "
            "pass allow_unverified=True"
        )
    from wattune.compiler.measure.runner import LocalRunner

    with LocalRunner(target, mode="hot") as runner:
        records = {record.candidate: record for record in runner.run(missing)}
    for candidate in missing:
        record = records[candidate]
        if record.failure is not None:
            raise MeasureError(
                record.failure, f"{candidate.problem}: {record.failure}: {record.message}"
            )
    return [
        choice if choice.verified else replace(choice, record=records[choice.candidate])
        for choice in choices
    ]


def check_siblings(choices: Sequence[Choice], target: Target, also: Sequence[str]) -> None:
    """Raise `TargetError` for an architecture that cannot run the schedules chosen for the target.

    A schedule may use what only the target has: then each architecture gets a library of its own.
    """
    if also and target.kind != "cuda":
        raise TargetError(f"a {target.kind} target is one architecture; allowed beside it: none")
    for arch in also:
        sibling = Target.parse(f"cuda:{arch}")
        for choice in choices:
            problem, schedule = choice.candidate.problem, choice.candidate.schedule
            template = template_of(choice.candidate)
            try:
                if not template.applies(problem, sibling):
                    raise ScheduleError(f"{template.name} does not apply")
                template.space(problem, sibling).check(schedule.values)
            except (ScheduleError, UnknownNameError) as error:
                raise TargetError(
                    f"{problem}: its schedule for {target.arch} is none for {arch} ({error}); "
                    f"compile a library for cuda:{arch} of its own, load() takes a list"
                ) from error
