"""Which layout of the caches is faster for a model: its problems are tuned in each of them.

A problem's ``layout`` field is the caller's to fix, so no search decides it. Here it is asked: all
problems that share a cache change to another layout together, are tuned in both, and what a token
costs in each is compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from wattune.compiler.search.groups import groups_of
from wattune.compiler.tune_report import TuneReport
from wattune.errors import ProblemError
from wattune.ops import Problem
from wattune.ops.kv_cache import LAYOUTS

FIELD = "layout"
V = TypeVar("V")


@dataclass(frozen=True)
class Choices:
    """The problems that have a choice of layout: each as it is in every layout, and the others.

    ``caches`` holds, for each cache, its problems by layout.
    """

    caches: tuple[Mapping[str, tuple[Problem, ...]], ...]
    fixed: tuple[Problem, ...]

    @property
    def problems(self) -> list[Problem]:
        """Return everything that has to be tuned."""
        return list(dict.fromkeys(p for layout in LAYOUTS for p in self.of(layout)))

    def movable(self, layout: str) -> list[Problem]:
        """Return the problems that have a choice, in this layout."""
        return [problem for cache in self.caches for problem in cache[layout]]

    def of(self, layout: str) -> list[Problem]:
        """Return the whole model in this layout."""
        return [*self.movable(layout), *self.fixed]

    def spread(self, values: Mapping[Problem, V]) -> dict[Problem, V]:
        """Give every alternative the value of the problem that it stands for."""
        found = dict(values)
        for cache in self.caches:
            for alternatives in zip(*cache.values(), strict=True):
                known = next(p for p in alternatives if p in values)
                found.update((p, values[known]) for p in alternatives if p not in values)
        return found


def choices(problems: Sequence[Problem]) -> Choices:
    """Find the problems whose layout may be another; those of one cache may or may not together.

    Raises `ProblemError` where none may.
    """
    caches: list[Mapping[str, tuple[Problem, ...]]] = []
    fixed: list[Problem] = []
    for group in groups_of(problems):
        ways = {layout: _in_layout(group.members, layout) for layout in LAYOUTS}
        if all(ways.values()):
            caches.append(ways)
        else:
            fixed += group.members
    if not caches:
        raise ProblemError(
            f"no problem has a cache whose layout may be any of {', '.join(LAYOUTS)}: "
            "there is nothing to explore"
        )
    return Choices(tuple(caches), tuple(fixed))


def _in_layout(members: Iterable[Problem], layout: str) -> tuple[Problem, ...]:
    """Return the problems in another layout; none where one of them cannot be."""
    try:
        return tuple(dataclasses.replace(p, **{FIELD: layout}) for p in members)
    except (TypeError, ProblemError):
        # No such field, or not in this layout.
        return ()


@dataclass(frozen=True)
class Comparison:
    """What a tune of all choices found: the model's report in each layout."""

    choices: Choices
    reports: Mapping[str, TuneReport]

    @property
    def milliseconds(self) -> dict[str, float]:
        """Return ms per token of the problems that have a choice, where all have figures."""
        return _known({layout: self._cost(self.choices.movable(layout)) for layout in LAYOUTS})

    @property
    def fastest(self) -> str | None:
        """Return the layout to use; None where one of them has no figure."""
        found = self.milliseconds
        return min(found, key=lambda layout: found[layout]) if len(found) == len(LAYOUTS) else None

    @property
    def speedup(self) -> float | None:
        """Return how many times faster these problems are than in the other layout."""
        found = self.milliseconds
        return max(found.values()) / min(found.values()) if self.fastest else None

    @property
    def report(self) -> TuneReport:
        """Return the model's report in the fastest layout."""
        return self.reports[self.fastest or LAYOUTS[0]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data; caches are those of different sizes, such as of sliding layers."""
        return {
            "fastest": self.fastest,
            "speedup": self.speedup,
            "ms_per_token": self.milliseconds,
            "caches": [
                {
                    "problems": [problem.to_json() for problem in cache[LAYOUTS[0]]],
                    "ms_per_token": _known({name: self._cost(cache[name]) for name in LAYOUTS}),
                }
                for cache in self.choices.caches
            ],
            "problems": {
                name: [part.to_json() for part in report.problems]
                for name, report in self.reports.items()
            },
        }

    def _cost(self, problems: Sequence[Problem]) -> float | None:
        layout = str(getattr(problems[0], FIELD))
        return self.reports[layout].of(problems).ms_per_token.measured


def compare(found: Choices, report: TuneReport) -> Comparison:
    """Compare the layouts by the report of a tune of all choices."""
    return Comparison(found, {layout: report.of(found.of(layout)) for layout in LAYOUTS})


def _known(milliseconds: Mapping[str, float | None]) -> dict[str, float]:
    return {layout: value for layout, value in milliseconds.items() if value is not None}
