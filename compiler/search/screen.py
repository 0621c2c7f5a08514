"""Build more candidates than are measured, and choose among them by what building tells.

Of a GPU's candidates the assembler's registers and spills and the instructions of the machine code
are known before anything runs, and building takes no GPU. A model of its own learns from these
facts; the strategy's model cannot, since it predicts candidates that nobody has built.

Neighbours in the strategy's order compete with each other: what it wants for its prediction, for
its uncertainty or at random keeps its share of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from wattune.compiler.objective import Objective
from wattune.compiler.search.evolutionary import log_scores
from wattune.compiler.search.strategy import Strategy
from wattune.cost_models.learned_model import LearnedModel
from wattune.schedules.candidate import Candidate, Record

Facts = Mapping[Candidate, Mapping[str, float]]


class Builds(Protocol):
    """A runner that can build without measuring; ``surplus`` of 1 says that this is too dear."""

    surplus: int

    def facts(self, candidates: Sequence[Candidate]) -> Facts:
        """Return the facts of those candidates that build."""


class Screen:
    """Asks a strategy for ``surplus`` times what is measured and keeps the better ones."""

    def __init__(self, builds: Builds, model: LearnedModel, objective: Objective) -> None:
        """Start with a model that sees facts and has learnt nothing yet."""
        self._builds, self._model, self._objective = builds, model, objective

    def told(self, records: Sequence[Record]) -> None:
        """Learn from records and the facts they carry."""
        self._model.update(records)

    def ask(self, strategy: Strategy, count: int) -> list[Candidate]:
        """Return up to ``count`` candidates to measure, defaults always.

        Until enough is measured to learn from they are the strategy's own.
        """
        known = [record.latency for record in strategy.records.values() if record.valid]
        if not (known and self._model.trained):
            return strategy.ask(count)
        asked = strategy.ask(self._builds.surplus * count)
        defaults = set(strategy.task.defaults())
        first = [candidate for candidate in asked if candidate in defaults]
        rest = [candidate for candidate in asked if candidate not in defaults]
        return (first + self._better(rest, count - len(first), min(known)))[:count]

    def _better(self, rivals: Sequence[Candidate], count: int, best: float) -> list[Candidate]:
        """Return ``count`` of these, one of each few neighbours; what does not build loses."""
        if count < 1 or len(rivals) <= count:
            return list(rivals)
        facts = self._builds.facts(rivals)
        self._model.know(facts)
        scores = log_scores(self._model.predict(rivals), self._objective, best)
        built = np.array([candidate in facts for candidate in rivals])
        scores = np.where(built, scores, np.inf)
        heats = np.array_split(np.arange(len(rivals)), count)
        return [rivals[heat[scores[heat].argmin()]] for heat in heats]
