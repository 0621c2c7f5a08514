"""The phases of a tune: search, layouts of groups, search within these, confirmation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattune.compiler.search.finals import confirm
from wattune.compiler.search.groups import Group, groups_of, restricted
from wattune.compiler.search.layouts import contested, shortlist, try_layouts
from wattune.compiler.search.rates import floors
from wattune.compiler.search.scheduler import LEAST_WEIGHT, Scheduler
from wattune.compiler.search.session import Session
from wattune.compiler.search.stopping import Phase
from wattune.compiler.search.task import Task
from wattune.errors import MeasureError
from wattune.ops import Problem
from wattune.schedules.candidate import FailureKind
from wattune.schedules.template import Layout

# Trials of a round: few enough that the model learns often, enough that builds overlap.
LEAST_ROUND, MOST_ROUND = 6, 16
# A task's rounds if all tasks had the same number.
ROUNDS_PER_TASK = 6
# Share of the time for the re-measurement of the best; the rest is for searching.
CONFIRM_TIME = 0.2
# Where problems share data: the share of the search that is free to use any layout, and the share
# after which the groups must have agreed on theirs. What follows searches in these.
FREE, AGREED = 0.5, 0.75


def run_phases(session: Session) -> str:
    """Search, let groups agree on layouts, search in these, confirm; return why it stopped."""
    weights = {task.problem: task.weight for task in session.tasks}
    groups = [group for group in groups_of(list(weights)) if len(group.members) > 1]
    end = 1 - CONFIRM_TIME
    if groups:
        # Members without weight have no say in the layout: their turn comes when it is known.
        _search(session, Phase("search", FREE, FREE * end), _scheduler(session, session.tasks, 0.0))
        agreed = _agree(session, Phase("layouts", AGREED, AGREED * end), groups, weights)
        tasks = [_inside(task, agreed) for task in session.tasks]
    else:
        tasks = list(session.tasks)
    stopped = _search(session, Phase("search", time=end), _scheduler(session, tasks))
    _check_any_valid(session)
    session.start(Phase("confirm"))
    confirm(session, Phase("confirm"), contested(session, groups, weights))
    return stopped


def _scheduler(
    session: Session, tasks: Sequence[Task], least_weight: float = LEAST_WEIGHT
) -> Scheduler:
    """Return the scheduler of these tasks, told what was measured of them before."""
    objective = session.settings.objective
    bounds = None if objective.needs_energy else floors(tasks, session.prior)
    scheduler = Scheduler(tasks, bounds, objective, least_weight)
    for at, task in enumerate(tasks):
        known = [r for r in session.history[task.problem] if task.contains(r.candidate)]
        if known:
            scheduler.told(at, known)
    return scheduler


def _search(session: Session, phase: Phase, scheduler: Scheduler) -> str:
    """Give rounds to tasks until the phase is over or nothing is left to try or to win."""
    if phase.over(session.budget):
        return session.budget.reason()
    session.start(phase)
    while not phase.over(session.budget):
        at = scheduler.next()
        if at is None:
            return scheduler.over
        task = scheduler.tasks[at]
        first = not session.history[task.problem]
        size = _first_round(session, task) if first else _round(session)
        records = session.round(phase, task, size)
        scheduler.told(at, records, session.settled(task))
    return session.budget.reason()


def _round(session: Session) -> int:
    """Return the size of a round: several rounds for every task within what can be measured."""
    trials = float(session.budget.trials)
    if session.budget.seconds is not None:
        trials = min(trials, session.budget.seconds / session.seconds_per_candidate())
    return int(min(MOST_ROUND, max(LEAST_ROUND, trials / len(session.tasks) / ROUNDS_PER_TASK)))


def _first_round(session: Session, task: Task) -> int:
    """Return the size of a task's first round: all templates' defaults, if others get them too."""
    size = max(_round(session), len(task.defaults()) + LEAST_ROUND)
    waiting = sum(not session.history[other.problem] for other in session.tasks)
    fit = session.budget.time_left() / session.seconds_per_candidate()
    return int(max(1, min(size, min(session.budget.left(), fit) / (2 * waiting))))


def _agree(
    session: Session, phase: Phase, groups: Sequence[Group], weights: Mapping[Problem, float]
) -> dict[Problem, Layout]:
    """Measure groups in the layouts that they may choose; return each member's as it looks now."""
    session.start(phase)
    agreed: dict[Problem, Layout] = {}
    for group in groups:
        try_layouts(session, phase, group, weights)
        for layout in shortlist(session, group, weights)[:1]:
            agreed.update(dict.fromkeys(group.members, layout))
    return agreed


def _inside(task: Task, agreed: Mapping[Problem, Layout]) -> Task:
    """Return a task within its group's layout, if there is one."""
    layout = agreed.get(task.problem)
    return (layout and restricted(task, layout)) or task


def _check_any_valid(session: Session) -> None:
    """Refuse a tune in which every candidate failed."""
    records = [record for known in session.history.values() for record in known]
    if not records or any(record.valid for record in records):
        return
    kinds: dict[FailureKind, int] = {}
    for record in records:
        if record.failure is not None:
            kinds[record.failure] = kinds.get(record.failure, 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    last = records[-1]
    raise MeasureError(
        max(kinds, key=lambda kind: kinds[kind]),
        f"all {len(records)} candidates failed ({counts}); "
        f"the last one, {last.candidate.schedule.template}: {last.message or last.failure}",
    )
