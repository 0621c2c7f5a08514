"""The end of a tune: the best candidates of each problem and its default are measured in turn.

The best of many noisy single measurements looks better than it is. So the default and the best few
of every problem, and the best of each layout that its group may choose, are measured again,
alternately. What wins here is selected, and since the default takes part, nothing slower can win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattune.compiler.measure.confirm import is_confirmation, marked, merged
from wattune.compiler.measure.runner import Runner
from wattune.compiler.search.groups import groups_of
from wattune.compiler.search.session import Session
from wattune.compiler.search.standings import (
    Standing,
    scored,
    standings,
)
from wattune.compiler.search.stopping import Phase
from wattune.compiler.search.task import Task
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.template import Layout

# Candidates besides the default, and how often each is measured.
FINALISTS = 3
ROUNDS = 5
# Building a finalist again and measuring it `ROUNDS` times, over the time of one trial.
_COST = 3.0


def confirm(session: Session, phase: Phase, layouts: Mapping[Problem, Sequence[Layout]]) -> None:
    """Re-measure the finalists of every problem that has new records.

    ``layouts`` are those that a problem's group may choose. When time is short there are fewer
    finalists, but always the default and the best.
    """
    waiting = _with_news(session)
    # Where time runs out it should be the least important problem that suffers.
    waiting.sort(key=lambda task: -_importance(session, task))
    for done, task in enumerate(waiting):
        seconds = session.budget.time_left(phase.time) / (len(waiting) - done)
        fit = seconds / _COST / session.seconds_per_candidate() - 1
        most = int(max(1, min(FINALISTS, fit)))
        finalists = choose_finalists(session, task, most, layouts.get(task.problem, ()))
        if len(finalists) > 1:
            energy = session.settings.objective.needs_energy
            records = interleaved(session.runner, finalists, energy)
            # Named after its end, by the clock of the records: what is newer was not part of it.
            name = max(record.provenance.created for record in records)
            for record in records:
                session.keep(marked(record, name))


def choose_finalists(
    session: Session, task: Task, most: int, layouts: Sequence[Layout]
) -> list[Candidate]:
    """Return the default, the best ``most`` candidates and the best in each of the layouts.

    Where there are layouts, the best are those of the first one, and the best of all.
    """
    known = standings(session.history[task.problem])
    ranked = [standing for _, standing in scored(known, session.settings.objective)]
    likely = [s for s in ranked if not layouts or s.layout == layouts[0]]
    failed = {record.candidate for record in session.history[task.problem] if not record.valid}
    # When time ran out before the default was measured, this is where it is.
    defaults = [candidate for candidate in task.defaults()[:1] if candidate not in failed]
    best = [standing.candidate for standing in (*likely[:most], *ranked[:1])]
    inside = [found.candidate for lay in layouts if (found := _first(ranked, lay)) is not None]
    return list(dict.fromkeys([*defaults, *best, *inside]))


def interleaved(runner: Runner, candidates: Sequence[Candidate], energy: bool) -> list[Record]:
    """Measure candidates in turn: by the runner's own way to do it, or by repeated runs."""
    if own := getattr(runner, "interleaved", None):
        records: list[Record] = own(candidates, rounds=ROUNDS, energy=energy)
        return records
    run = getattr(runner, "energy", runner.run) if energy else runner.run
    found: dict[Candidate, list[Record]] = {candidate: [] for candidate in candidates}
    for turn in range(ROUNDS):
        for record in run(candidates if turn % 2 == 0 else candidates[::-1]):
            found[record.candidate].append(record)
    return [merged(records) for records in found.values()]


def _first(ranked: Sequence[Standing], layout: Layout) -> Standing | None:
    return next((standing for standing in ranked if standing.layout == layout), None)


def _with_news(session: Session) -> list[Task]:
    """Return the tasks to confirm; groups are confirmed as a whole, to stay comparable."""
    news = {task.problem for task in session.tasks if _has_news(session.history[task.problem])}
    groups = groups_of([task.problem for task in session.tasks])
    wanted = {p for group in groups if news & set(group.members) for p in group.members}
    return [task for task in session.tasks if task.problem in wanted]


def _has_news(records: Sequence[Record]) -> bool:
    """Say whether something was measured since the last confirmation."""
    trials = [r.provenance.created for r in records if not is_confirmation(r)]
    sessions = [standing.session for standing in standings(records)]
    return bool(trials) and max(trials) > max(sessions, default=0.0)


def _importance(session: Session, task: Task) -> float:
    best = session.best(task.problem)
    return task.weight * task.multiplicity * (best.latency if best else 0.0)
