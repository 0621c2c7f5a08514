"""Evolution without a model: children of the best measured candidates are measured themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wattune.compiler.search.strategy import Strategy
from wattune.schedules.candidate import Candidate, Schedule

# Parents kept; a parent's chance falls by half every `HALF` ranks.
PARENTS = 24
HALF = 4
# Fewer valid records than this say too little: the batch is random.
LEAST_PARENTS = 4
# Share of every batch that is random, whatever is known.
EXPLORE = 0.1
# Share of children with two parents, further mutated half the time.
CROSSOVER = 0.5
# Attempts per wanted child before a neighbourhood counts as used up.
_ATTEMPTS = 8


class PlainEvolutionary(Strategy):
    """Mutation and crossover of measured parents, and a random share."""

    name = "plain_evolutionary"

    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return children of the best, and some random candidates."""
        parents = self.ranked()[:PARENTS]
        if len(parents) < LEAST_PARENTS:
            return self.samples(count, rng, self.shares())
        wanted = count - rounded(EXPLORE * count, rng)
        children = self.breed(parents, wanted, rng)
        return children + self.samples(count - len(children), rng, self.shares(), children)

    def breed(
        self, parents: Sequence[Candidate], count: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """Return up to ``count`` new children, all different; better parents have more."""
        chances = 0.5 ** (np.arange(len(parents)) / HALF)
        chances /= chances.sum()
        children: dict[Schedule, Candidate] = {}
        # All pairs at once: numpy looks at the chances anew in every call.
        for pair in rng.choice(len(parents), (_ATTEMPTS * count, 2), p=chances):
            if len(children) == count:
                break
            child = self._child(parents[pair[0]], parents[pair[1]], rng)
            if child is not None and self.is_new(child):
                children[child.schedule] = child
        return list(children.values())

    def _child(
        self, one: Candidate, other: Candidate, rng: np.random.Generator
    ) -> Candidate | None:
        if one == other or rng.random() >= CROSSOVER:
            return self.task.mutate(one, rng)
        child = self.task.crossover(one, other, rng)
        if child is not None and rng.random() < 0.5:
            return self.task.mutate(child, rng)
        return child

    def shares(self) -> dict[str, float]:
        """Return how often random candidates use each template: by its best one's speed, squared.

        A template nothing is known of comes up as often as the best one.
        """
        best: dict[str, float] = {}
        for record in self.records.values():
            name = record.candidate.schedule.template
            best[name] = min(record.latency, best.get(name, record.latency))
        least = min(best.values(), default=1.0)
        return {name: speed_share(seconds, least) for name, seconds in best.items()}


def speed_share(seconds: float, least: float) -> float:
    """Return (least / seconds) squared; 1 where nothing has run yet, 0 for what never ran."""
    return (least / seconds) ** 2 if np.isfinite(least) else 1.0


def rounded(value: float, rng: np.random.Generator) -> int:
    """Round up or down at random, so that the mean is the value."""
    return int(value + rng.random())
