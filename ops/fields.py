"""Checks of problem fields: what was wrong, the value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from wattune.errors import ProblemError
from wattune.ops.operator import Problem


def integer(problem: Problem, name: str, low: int, high: int | None = None) -> None:
    """Refuse a field that is not an integer from ``low`` to ``high``."""
    value = getattr(problem, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        pass
    elif high is None or value <= high:
        return
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    raise error(problem, name, allowed)


def one_of(problem: Problem, name: str, allowed: Iterable[object]) -> None:
    """Refuse a field with another value than these."""
    if getattr(problem, name) not in (known := list(allowed)):
        raise error(problem, name, ", ".join(map(str, known)))


def number(problem: Problem, name: str) -> None:
    """Refuse a field that is not a finite number >= 0; make integers floats."""
    value = getattr(problem, name)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not 0 <= value < float("inf"):
        raise error(problem, name, "a number >= 0")
    # Equal problems must have equal keys.
    object.__setattr__(problem, name, float(value))


def error(problem: Problem, name: str, allowed: str) -> ProblemError:
    """Say which field is wrong."""
    value = getattr(problem, name)
    return ProblemError(f"{problem.operator}: {name} is {value!r}; allowed: {allowed}")
