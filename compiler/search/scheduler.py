"""Which task gets the next trials: the one that can still win most for the whole model.

First every task gets one round, in the order given, so that each default is measured. Then the
next round goes to the greatest estimate of

    gain = weight * multiplicity * (best - reachable)

in seconds (or joules) of one pass over the model. What one round can reach is

    best - reachable = (best - floor) * chance
    chance           = recent + REST / (1 + stale)

``floor`` is the physical bound of the task, at most `FLOOR_SHARE` of the best, because bounds are
often guesses. ``recent`` is the share of the distance to the floor that the last `WINDOW` rounds
won: a task that improves fast is expected to go on. ``stale`` counts the rounds since the last
improvement by at least `NOTABLE`: a task that has not moved for long loses its turn to others, but
comes back when the others have gone stale as well. Among equally stale tasks the trials go where
the model's time goes. (Ansor's task scheduler has the same two parts: a slope, and a bound.)

A task without any valid candidate goes first, for a few rounds: without it there is no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wattune.compiler.objective import LATENCY, Objective, joules_of
from wattune.compiler.search.task import Task
from wattune.schedules.candidate import Record

# A bound is believed to be out of reach by at least this share of the best.
FLOOR_SHARE = 0.85
# Rounds that count as recent, and the chance of a task that has just improved a little.
WINDOW = 2
REST = 0.2
# A smaller improvement is noise.
NOTABLE = 0.005
# Tasks of buckets without weight are tuned as if they had this one: they will be called.
LEAST_WEIGHT = 0.05
# Rounds for a task in which nothing works.
HOPELESS = 3


@dataclass
class Course:
    """How far one task is: the best objective after each round, and why it gets no more of them.

    ``over``: ``exhausted`` where nothing is left to try, ``settled`` where nothing is left to win.
    """

    factor: float
    floor: float
    bests: list[float] = field(default_factory=list)
    over: str = ""

    @property
    def rounds(self) -> int:
        """Return how many rounds the task had."""
        return len(self.bests)

    @property
    def best(self) -> float:
        """Return the best objective; infinite where nothing valid is known."""
        return self.bests[-1] if self.bests else float("inf")

    def gain(self) -> float:
        """Estimate what one more round wins for the whole model."""
        if not np.isfinite(self.best):
            return float("inf") if self.rounds < HOPELESS else 0.0
        floor = min(self.floor, FLOOR_SHARE * self.best)
        finite = [best for best in self.bests if np.isfinite(best)]
        before = finite[max(0, len(finite) - 1 - WINDOW)]
        recent = (before - self.best) / (before - floor)
        stale = sum(best <= self.best * (1 + NOTABLE) for best in finite) - 1
        return self.factor * (self.best - floor) * (recent + REST / (1 + stale))


class Scheduler:
    """Shares rounds among tasks; tell it the records of every round."""

    def __init__(
        self,
        tasks: Sequence[Task],
        floors: Sequence[float] | None = None,
        objective: Objective = LATENCY,
        least_weight: float = LEAST_WEIGHT,
    ) -> None:
        """Start with no rounds; ``floors``: the least objective that physics allows, by task."""
        self.tasks, self.objective = tasks, objective.decisive
        self.courses = [
            Course(max(task.weight, least_weight) * task.multiplicity, floor)
            for task, floor in zip(tasks, floors or [0.0] * len(tasks), strict=True)
        ]

    def next(self) -> int | None:
        """Return the index of the task that gets the next round; None where all are over."""
        left = [at for at, course in enumerate(self.courses) if not course.over]
        fresh = [at for at in left if self.courses[at].rounds == 0]
        if fresh or not left:
            return fresh[0] if fresh else None
        # Of equal gains (all hopeless, say) the one with the fewest rounds.
        return max(left, key=lambda at: (self.courses[at].gain(), -self.courses[at].rounds))

    @property
    def over(self) -> str:
        """Say why no task gets a round: ``settled`` if any could have gone on."""
        return "settled" if any(c.over == "settled" for c in self.courses) else "exhausted"

    def told(self, at: int, records: Sequence[Record], settled: bool = False) -> None:
        """Count a round of a task; a round without records means that it has nothing left."""
        course = self.courses[at]
        if not records:
            course.over = "exhausted"
            return
        if settled:
            course.over = "settled"
        valid = [record for record in records if record.valid]
        latency = np.array([record.latency for record in valid])
        # Each record against itself: a slack would compare it with others.
        energy = joules_of(valid)
        scores = [
            float(self.objective.scores(latency[i : i + 1], energy[i : i + 1])[0])
            for i in range(len(valid))
        ]
        course.bests.append(min([course.best, *scores]))
