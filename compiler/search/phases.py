"""The phases of a tune: search, layouts of groups, search with what they left, confirmation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattune.compiler.search.finals import confirm
from wattune.compiler.search.groups import Group, groups_of
from wattune.compiler.search.layouts import contested, try_layouts
from wattune.compiler.search.rates import floors
from wattune.compiler.search.scheduler import Scheduler
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
# Shares of trials and of time that are kept back for groups to agree on a layout, and of the time
# for the re-measurement of the best.
LAYOUT_TRIALS = 0.25
LAYOUT_TIME, CONFIRM_TIME = 0.15, 0.2


def run_phases(session: Session) -> str:
    """Search, let groups agree on layouts, confirm; return why the search stopped."""
    weights = {task.problem: task.weight for task in session.tasks}
    groups = [group for group in groups_of(list(weights)) if len(group.members) > 1]
    end = 1 - CONFIRM_TIME
    share = (1 - LAYOUT_TRIALS, end - LAYOUT_TIME) if groups else (1.0, end)
    scheduler = _scheduler(session)
    stopped = _search(session, Phase("search", *share), scheduler)
    shortlists = _layouts(session, Phase("layouts", time=end), groups, weights)
    if groups:
        # What the groups did not need.
        stopped = _search(session, Phase("search", time=end), scheduler)
    _check_any_valid(session)
    session.start(Phase("confirm"))
    confirm(session, Phase("confirm"), contested(shortlists))
    return stopped


def _scheduler(session: Session) -> Scheduler:
    """Return the scheduler, told what earlier tunes measured."""
    objective = session.settings.objective
    bounds = None if objective.needs_energy else floors(session.tasks, session.prior)
    scheduler = Scheduler(session.tasks, bounds, objective)
    for at, task in enumerate(session.tasks):
        if session.history[task.problem]:
            scheduler.told(at, session.history[task.problem])
    return scheduler


def _search(session: Session, phase: Phase, scheduler: Scheduler) -> str:
    """Give rounds to tasks until the phase is over or nothing is left to try."""
    if phase.over(session.budget):
        return session.budget.reason()
    session.start(phase)
    while not phase.over(session.budget):
        at = scheduler.next()
        if at is None:
            return "exhausted"
        task = session.tasks[at]
        first = not session.history[task.problem]
        size = _first_round(session, task) if first else _round(session)
        scheduler.told(at, session.round(phase, task, size))
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


def _layouts(
    session: Session, phase: Phase, groups: Sequence[Group], weights: Mapping[Problem, float]
) -> list[tuple[Group, Sequence[Layout]]]:
    """Have the members of groups measured in the layouts that they may agree on."""
    if groups:
        session.start(phase)
    return [(group, try_layouts(session, phase, group, weights)) for group in groups]


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
