"""Select: which candidate serves each problem, with one layout for everything that shares data.

For a group of problems that read the same packed data, the layout is the one with the least
``sum of weight * t / t_best`` over the members; within it each member gets its own best candidate.
`wattune.compiler.search.standings` says which figure stands for a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from wattune.compiler.database import Database
from wattune.compiler.objective import Objective, no_energy, parse_objective
from wattune.compiler.search.groups import Group, common_layouts, groups_of, weights_of
from wattune.compiler.search.standings import Standing, best_by_layout, eligible, standings
from wattune.compiler.search.task import Task
from wattune.errors import ScheduleError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, default_candidate, layout_of

# Layouts whose costs differ by less are equal as far as measuring goes; the whole group decides.
NOISE = 0.02

Board = Mapping[Layout, tuple[float, Standing]]


@dataclass(frozen=True)
class Selection:
    """The candidate of a problem, its layout, and its record: None where it was never measured."""

    candidate: Candidate
    layout: Layout
    record: Record | None = None


def select(
    problems: Sequence[Problem],
    target: Target,
    database: Database | str | Path | None,
    objective: str | Objective = "latency",
    weights: Mapping[Problem, float] | None = None,
) -> dict[Problem, Selection]:
    """Return a selection for every problem; the default schedule where there is no record.

    Only records of the current template sources, in cold mode, count; on the machine that the
    target describes only its own, elsewhere those of any machine with this target. ``weights``
    are those of the buckets, by default all on the smallest. Raises `TargetError` for an energy
    objective where records have no energy.
    """
    wanted = parse_objective(objective)
    found = _read(problems, target, database)
    return select_from(problems, target, found, wanted, weights_of(problems, weights))


def select_from(
    problems: Sequence[Problem],
    target: Target,
    records: Mapping[Problem, Sequence[Record]],
    objective: Objective,
    weights: Mapping[Problem, float],
) -> dict[Problem, Selection]:
    """Do what `select` does with eligible records at hand."""
    chosen: dict[Problem, Selection] = {}
    for group in groups_of(problems):
        known = {p: standings(records.get(p, ())) for p in group.members}
        _check_energy(known, objective)
        boards = {p: best_by_layout(known[p], objective) for p in group.members}
        layout = _group_layout(group, target, boards, weights)
        for problem in group.members:
            chosen[problem] = _selection(problem, target, boards[problem], layout)
    return {problem: chosen[problem] for problem in problems}


def layout_costs(
    group: Group, boards: Mapping[Problem, Board], weights: Mapping[Problem, float]
) -> dict[Layout, float]:
    """Return sum of weight * t / t_best over the members, for layouts that they all have."""
    measured = [p for p in group.members if boards[p]]
    costs: dict[Layout, float] = {}
    for layout in dict.fromkeys(layout for p in measured for layout in boards[p]):
        if all(layout in boards[p] for p in measured):
            costs[layout] = sum(weights[p] * ratio(boards[p], layout) for p in measured)
    return costs


def ratio(board: Board, layout: Layout) -> float:
    """Return t / t_best of a layout that the board has."""
    least = min(score for score, _ in board.values())
    return board[layout][0] / least if least > 0 else 1.0


def _group_layout(
    group: Group,
    target: Target,
    boards: Mapping[Problem, Board],
    weights: Mapping[Problem, float],
) -> Layout | None:
    """Return the layout of a group; None where a lone problem has no record."""
    if len(group.members) == 1:
        lone = group.members[0]
        board = _trusted(boards)[lone] or boards[lone]
        return min(board, key=lambda layout: board[layout][0]) if board else None
    common = common_layouts(group, target)
    if not common:
        raise ScheduleError(
            f"{', '.join(map(str, group.members))} share data, but no layout is read by all"
        )
    readable = {p: {lay: s for lay, s in boards[p].items() if lay in common} for p in boards}
    costs = layout_costs(group, _trusted(readable), weights) or layout_costs(
        group, readable, weights
    )
    if costs:
        least = min(costs.values())
        equal = [layout for layout, cost in costs.items() if cost <= least * (1 + NOISE)]
        alike = layout_costs(group, readable, dict.fromkeys(weights, 1.0))
        return min(equal, key=lambda layout: alike[layout])
    return _fallback(group, target, readable, weights, common)


def _trusted(boards: Mapping[Problem, Board]) -> dict[Problem, Board]:
    """Keep confirmed layouts: the best of many single measurements looks better than it is."""
    return {
        problem: {lay: pair for lay, pair in board.items() if pair[1].confirmed}
        for problem, board in boards.items()
    }


def _fallback(
    group: Group,
    target: Target,
    boards: Mapping[Problem, Board],
    weights: Mapping[Problem, float],
    common: Sequence[Layout],
) -> Layout:
    """Choose where no layout was measured by all members: the heaviest measured one's best.

    Without any record it is the default layout of the smallest bucket.
    """
    measured = [p for p in group.members if boards[p]]
    if measured:
        heaviest = max(measured, key=lambda p: weights[p])
        board = _trusted(boards)[heaviest] or boards[heaviest]
        return min(board, key=lambda layout: board[layout][0])
    first = layout_of(default_candidate(group.smallest, target))
    return first if first in common else common[0]


def _selection(problem: Problem, target: Target, board: Board, layout: Layout | None) -> Selection:
    if layout is not None and layout in board:
        standing = board[layout][1]
        return Selection(standing.candidate, layout, standing.record)
    candidate = Task(problem, target, layout).defaults()[0]
    return Selection(candidate, layout_of(candidate))


def _check_energy(known: Mapping[Problem, Sequence[Standing]], objective: Objective) -> None:
    for problem, found in known.items():
        if objective.needs_energy and found and all(s.joules is None for s in found):
            raise no_energy(objective, f"no record of {problem} has any")


def _read(
    problems: Sequence[Problem], target: Target, database: Database | str | Path | None
) -> dict[Problem, list[Record]]:
    """Read the eligible records of every problem."""
    if database is None:
        return {}
    here = fingerprint(target) if target.runs_here() else None
    opened = (
        nullcontext(database)
        if isinstance(database, Database)
        else Database(database, create=False, read_only=True)
    )
    with opened as source:
        return {
            p: [r for r in source.records(p, target, here, "cold") if eligible(r)] for p in problems
        }
