"""Layouts of groups: see that every member has been measured in each layout worth choosing.

The free search tunes members one by one, and each finds its own favourite layout. A group has to
agree on one, so the few layouts that look best for all are tried by the members that lack them:
their default within the layout, then a handful of trials there. The search then goes on within the
layout that looks best, and the confirmation at the end decides between it and its rivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattune.compiler.search.groups import Group, common_layouts, restricted
from wattune.compiler.search.session import Session
from wattune.compiler.search.standings import best_by_layout, standings
from wattune.compiler.search.stopping import Phase
from wattune.compiler.search.task import Task
from wattune.ops import Problem
from wattune.schedules.template import Layout, layout_of

# Layouts that a group's members are all measured in, trials of each member in each of them, and
# layouts that are confirmed in the end.
SHORTLIST = 3
HANDFUL = 6
FINAL = 2
# Members without weight are asked as well, but can only decide between near equals.
LEAST_WEIGHT = 0.01

Boards = Mapping[Problem, Mapping[Layout, float]]


def shortlist(
    session: Session, group: Group, weights: Mapping[Problem, float], count: int = SHORTLIST
) -> list[Layout]:
    """Return the layouts with the least sum of weight * t / t_best, the best first.

    Where a member was not measured in a layout, the model's prediction for its default there
    stands in, and without a model the hope that nothing is lost. The layout that an untuned
    library has is always among them: the tuned one must not be slower.
    """
    boards = _boards(session, group)
    target = session.tasks[0].target
    seen = {layout for board in boards.values() for layout in board}
    costs: dict[Layout, float] = {}
    for layout in (layout for layout in common_layouts(group, target) if layout in seen):
        ratios = {p: _ratio(session, _task(session, p), boards[p], layout) for p in group.members}
        costs[layout] = sum(max(weights[p], LEAST_WEIGHT) * value for p, value in ratios.items())
    best = sorted(costs, key=lambda layout: costs[layout])[:count]
    default = layout_of(_task(session, group.smallest).defaults()[0])
    return best if default in best or default not in costs else [*best, default]


def try_layouts(
    session: Session, phase: Phase, group: Group, weights: Mapping[Problem, float]
) -> None:
    """Measure what is missing in the shortlisted layouts: every default, then the handfuls."""
    members = sorted(group.members, key=lambda p: -weights[p])
    pairs = [
        inside
        for layout in shortlist(session, group, weights)
        for problem in members
        if (inside := restricted(_task(session, problem), layout)) is not None
    ]
    # A layout is comparable once every member has one figure in it, so defaults come first.
    for wanted in (1, HANDFUL):
        for task in pairs:
            # A member without weight cannot change the choice by being tuned here.
            enough = wanted if weights[task.problem] > 0 else 1
            missing = enough - _measured_in(session, task)
            if missing > 0 and not phase.over(session.budget):
                session.round(phase, task, missing)


def contested(
    session: Session, groups: Sequence[Group], weights: Mapping[Problem, float]
) -> dict[Problem, list[Layout]]:
    """Return the layouts between which a group's confirmation decides, for every member.

    The likeliest first, then the next, then the default one.
    """
    found: dict[Problem, list[Layout]] = {}
    for group in groups:
        layouts = shortlist(session, group, weights, FINAL)
        found.update(dict.fromkeys(group.members, layouts))
    return found


def _boards(session: Session, group: Group) -> dict[Problem, dict[Layout, float]]:
    objective = session.settings.objective
    return {
        p: {
            layout: score
            for layout, (score, _) in best_by_layout(
                standings(session.history[p]), objective
            ).items()
        }
        for p in group.members
    }


def _ratio(session: Session, task: Task, board: Mapping[Layout, float], layout: Layout) -> float:
    if not board:
        return 1.0
    least = min(board.values())
    if layout in board:
        return board[layout] / least
    inside, best = restricted(task, layout), session.best(task.problem)
    if session.model is None or best is None or inside is None:
        return 1.0
    predicted = session.model.predict([best.candidate, inside.defaults()[0]]).latency
    return max(1.0, float(predicted[1] / predicted[0]))


def _task(session: Session, problem: Problem) -> Task:
    return next(task for task in session.tasks if task.problem == problem)


def _measured_in(session: Session, task: Task) -> int:
    """Count the trials of a problem within the task's layout; its default there must be one."""
    schedules = {
        record.candidate.schedule
        for record in session.history[task.problem]
        if task.contains(record.candidate)
    }
    return len(schedules) if task.defaults()[0].schedule in schedules else 0
