"""From the latency of each problem to milliseconds per token of a whole model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wattune.ops import Problem


@dataclass(frozen=True)
class Calls:
    """The calls of a problem in a model's steps, and the seconds of one (None: not known).

    ``weight`` of the steps fall into the problem's bucket; each of them calls it ``multiplicity``
    times and makes ``tokens`` tokens.
    """

    problem: Problem
    multiplicity: int
    weight: float
    tokens: int
    seconds: float | None


def ms_per_token(calls: Iterable[Calls]) -> float | None:
    """Return milliseconds per token over all layers; None where a problem has no figure.

    Problems that differ in run-time sizes alone are the same layers in different steps: their mean
    step's time over its tokens is what those layers cost. That is added up over a model's layers,
    whose steps may be bucketed by different sizes (tokens here, batch and context there).
    """
    sums: dict[str, tuple[float, float]] = {}
    for part in calls:
        if part.weight <= 0:
            continue
        if part.seconds is None:
            return None
        seconds, tokens = sums.get(part.problem.static_key, (0.0, 0.0))
        sums[part.problem.static_key] = (
            seconds + part.weight * part.multiplicity * part.seconds,
            tokens + part.weight * part.tokens,
        )
    return sum(1e3 * seconds / tokens for seconds, tokens in sums.values()) if sums else None
