"""Tasks: a problem, a target and the union of the spaces of all templates that apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wattune.compiler.search.moves import mixed, mutated, stratified, valid
from wattune.errors import ScheduleError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.space import Space, Value, Values
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, Template, templates_for

# The chance that a mutation moves to another template and keeps the knobs both have.
SWITCH = 0.1


@dataclass(frozen=True)
class Branch:
    """One template's space within a task, and its default point."""

    template: Template
    space: Space
    default: Values


@dataclass(frozen=True)
class Task:
    """What one search is about; with a ``layout`` only candidates that read it.

    ``weight`` is the share of the problem's bucket, ``multiplicity`` how many layers have it,
    ``tokens`` what a step of the bucket makes (0: as many as the problem says).
    """

    problem: Problem
    target: Target
    layout: Layout | None = None
    weight: float = 1.0
    multiplicity: int = 1
    tokens: int = 0

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Return the spaces, the default template's first; `ScheduleError` where there is none."""
        found = tuple(
            branch
            for template in templates_for(self.problem, self.target)
            for space in self._spaces(template)
            if (branch := _branch(template, space)) is not None
        )
        if not found:
            raise ScheduleError(f"no template reads layout {self.layout} for {self.problem}")
        return found

    def _spaces(self, template: Template) -> Iterator[Space]:
        space = template.space(self.problem, self.target)
        if self.layout is None:
            yield space
            return
        for layout, fixed in template.layouts(self.problem, self.target):
            if layout == self.layout:
                yield space.restrict(fixed)

    def candidate(self, branch: Branch, values: Mapping[str, Value]) -> Candidate:
        """Return the candidate of a point."""
        return Candidate(self.problem, self.target, Schedule.make(branch.template.name, values))

    def defaults(self) -> list[Candidate]:
        """Return the default candidate of every template, the task's default first."""
        return [self.candidate(branch, branch.default) for branch in self.branches]

    def branch(self, candidate: Candidate) -> Branch:
        """Return the branch that a candidate is a point of; `ScheduleError` where there is none."""
        schedule = candidate.schedule
        mine = [b for b in self.branches if b.template.name == schedule.template]
        for branch in mine:
            if len(mine) == 1 or branch.space.contains(schedule.values):
                return branch
        raise ScheduleError(f"{schedule.template} is not part of the search for {self.problem}")

    def contains(self, candidate: Candidate) -> bool:
        """Say whether a candidate is a point of the task."""
        if (candidate.problem, candidate.target) != (self.problem, self.target):
            return False
        values = candidate.schedule.values
        return any(
            b.template.name == candidate.schedule.template and b.space.contains(values)
            for b in self.branches
        )

    def product(self) -> int:
        """Count the points without regard to constraints."""
        return sum(branch.space.product() for branch in self.branches)

    def size(self) -> int:
        """Count the points; walks the spaces."""
        return sum(branch.space.size() for branch in self.branches)

    def enumerate(self) -> Iterator[Candidate]:
        """Yield every candidate, template by template."""
        for branch in self.branches:
            for values in branch.space.enumerate():
                yield self.candidate(branch, values)

    def sample(
        self, rng: np.random.Generator, shares: Mapping[str, float] | None = None
    ) -> Candidate | None:
        """Draw a candidate; ``shares`` says how often each template comes up, by default alike."""
        branch = self._draw_branch(rng, shares)
        return self._of(branch, branch.space.sample(rng))

    def spread(
        self, count: int, rng: np.random.Generator, shares: Mapping[str, float] | None = None
    ) -> list[Candidate]:
        """Draw candidates whose knobs cover all their values evenly (a Latin hypercube).

        A combination that the constraints forbid is replaced by a plain sample.
        """
        drawn = [self._draw_branch(rng, shares) for _ in range(count)]
        found: dict[Schedule, Candidate] = {}
        for branch in self.branches:
            rows = sum(b is branch for b in drawn)
            columns = [stratified(knob, rows, rng) for knob in branch.space.knobs]
            names = [knob.name for knob in branch.space.knobs]
            for row in range(rows):
                point = dict(zip(names, (column[row] for column in columns), strict=True))
                fits = valid(branch.space, point)
                candidate = self._of(branch, point if fits else branch.space.sample(rng))
                if candidate is not None:
                    found[candidate.schedule] = candidate
        return list(found.values())

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        """Yield the candidates that differ in one knob by one step."""
        branch = self.branch(candidate)
        for values in branch.space.neighbours(candidate.schedule.values):
            yield self.candidate(branch, values)

    def mutate(self, candidate: Candidate, rng: np.random.Generator) -> Candidate | None:
        """Change a knob or a few, mostly by one step, rarely the template; None where stuck."""
        branch, values = self.branch(candidate), candidate.schedule.values
        if len(self.branches) > 1 and rng.random() < SWITCH:
            others = [other for other in self.branches if other is not branch]
            branch = others[rng.integers(len(others))]
            return self._of(branch, mixed(branch.space, branch.default, values, rng, share=0.9))
        return self._of(branch, mutated(branch.space, values, rng))

    def crossover(
        self, one: Candidate, other: Candidate, rng: np.random.Generator
    ) -> Candidate | None:
        """Mix two parents knob by knob, in the first one's template; None where no mix is valid."""
        branch = self.branch(one)
        return self._of(
            branch, mixed(branch.space, one.schedule.values, other.schedule.values, rng)
        )

    def _draw_branch(self, rng: np.random.Generator, shares: Mapping[str, float] | None) -> Branch:
        if shares is None:
            return self.branches[rng.integers(len(self.branches))]
        weights = np.array([max(shares.get(b.template.name, 1.0), 1e-9) for b in self.branches])
        return self.branches[int(rng.choice(len(weights), p=weights / weights.sum()))]

    def _of(self, branch: Branch, values: Values | None) -> Candidate | None:
        return None if values is None else self.candidate(branch, values)


def _branch(template: Template, space: Space) -> Branch | None:
    """Return a branch, or None where the constraints leave no point."""
    try:
        return Branch(template, space, space.default())
    except ScheduleError:
        return None
