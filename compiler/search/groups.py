"""Groups of problems that read the same packed data, and what their buckets weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wattune.compiler.search.task import Task
from wattune.errors import ScheduleError
from wattune.ops import Problem
from wattune.schedules.space import Space
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, templates_for


@dataclass(frozen=True)
class Group:
    """Problems that must agree on one layout; a problem that shares nothing is alone."""

    members: tuple[Problem, ...]

    @property
    def smallest(self) -> Problem:
        """Return the member of the smallest bucket."""
        return min(self.members, key=bucket)


def bucket(problem: Problem) -> tuple[int, ...]:
    """Return the run-time sizes that a problem is measured at."""
    return tuple(problem.sizes.values())


def groups_of(problems: Sequence[Problem]) -> list[Group]:
    """Group problems by `Problem.shared_data`, in the order in which groups first appear."""
    found: dict[str, list[Problem]] = {}
    for problem in dict.fromkeys(problems):
        found.setdefault(problem.shared_data() or problem.key, []).append(problem)
    return [Group(tuple(members)) for members in found.values()]


def weights_of(
    problems: Sequence[Problem], weights: Mapping[Problem, float] | None
) -> dict[Problem, float]:
    """Return every problem's weight; of buckets without any, the smallest has all of it.

    A problem that ``weights`` does not name weighs nothing, as long as its group has another:
    problems that share data may weigh nothing beside those that do.
    """
    found: dict[Problem, float] = {}
    for group in groups_of(problems):
        given = {p: (weights or {}).get(p, 0.0) for p in group.members}
        if sum(given.values()) <= 0:
            least: dict[str, tuple[int, ...]] = {}
            for p in sorted(group.members, key=bucket):
                least.setdefault(p.static_key, bucket(p))
            given = {p: float(bucket(p) == least[p.static_key]) for p in group.members}
        found.update(given)
    return found


def readable_layouts(problem: Problem, target: Target) -> list[Layout]:
    """Return the layouts that some template reads for a problem, the default template's first."""
    found: dict[Layout, None] = {}
    for template in templates_for(problem, target):
        space = template.space(problem, target)
        for layout, fixed in template.layouts(problem, target):
            if layout not in found and _has_points(space.restrict(fixed)):
                found[layout] = None
    return list(found)


def _has_points(space: Space) -> bool:
    try:
        space.default()
    except ScheduleError:
        return False
    return True


def common_layouts(group: Group, target: Target) -> list[Layout]:
    """Return the layouts that every member has a template for, in the smallest one's order."""
    others = [set(readable_layouts(p, target)) for p in group.members if p != group.smallest]
    first = readable_layouts(group.smallest, target)
    return [layout for layout in first if all(layout in other for other in others)]


def restricted(task: Task, layout: Layout) -> Task | None:
    """Return the task within one layout, or None where the constraints leave nothing of it."""
    inside = replace(task, layout=layout)
    try:
        inside.branches  # noqa: B018
    except ScheduleError:
        return None
    return inside
