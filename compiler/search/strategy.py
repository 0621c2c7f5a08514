"""Strategies propose the next candidates to measure (ask) and learn what came of them (tell)."""

from __future__ import annotations

import itertools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from wattune.compiler.objective import LATENCY, Floats, Objective, joules_of
from wattune.compiler.search.task import Task
from wattune.compiler.search.transfer import Transfer
from wattune.cost_models.base import CostModel
from wattune.errors import UnknownNameError
from wattune.schedules.candidate import Candidate, Record, Schedule

# Strategy -> its module and class; imported when it is asked for.
_STRATEGIES: dict[str, tuple[str, str]] = {
    "evolutionary": ("evolutionary", "Evolutionary"),
    "bayesian": ("bayesian", "Bayesian"),
    "plain_evolutionary": ("plain_evolutionary", "PlainEvolutionary"),
    "random": ("random_search", "RandomSearch"),
    "exhaustive": ("exhaustive", "Exhaustive"),
}

# What takes a strategy's place where other tasks' records are known.
_WARM: dict[str, tuple[str, str]] = {"bayesian": ("warm", "WarmBayesian")}

# Other people's samplers, for comparison: they need packages that Wattune does not.
_ADAPTERS: dict[str, tuple[str, str]] = {
    "optuna:tpe": ("optuna_search", "OptunaTPE"),
    "optuna:gp": ("optuna_search", "OptunaGP"),
    "optuna:nsga2": ("optuna_search", "OptunaNSGA2"),
    "optuna:random": ("optuna_search", "OptunaRandom"),
}

# Random draws per wanted candidate before the rest of a space is walked through instead.
_DRAWS = 20
# Spaces up to this size are listed and shuffled; in larger ones random draws do not run dry.
_LISTED = 1 << 17


class Strategy(ABC):
    """Proposes candidates of one task; none is proposed twice.

    The default candidates of all templates are among the first proposals. Proposals depend on the
    seed and on what was told, and on nothing else: neither on time nor on the order of the records.
    """

    name: ClassVar[str]
    # The cost model that it is given, which need not be one that learns; none by default.
    model_name: ClassVar[str] = ""

    def __init__(
        self,
        task: Task,
        model: CostModel | None = None,
        seed: int = 0,
        objective: Objective = LATENCY,
    ) -> None:
        """Search a task; the model is shared with other tasks and updated by the tuner."""
        self.task, self.model, self.seed, self.objective = task, model, seed, objective
        self.records: dict[Schedule, Record] = {}
        # What the best of the last proposals was expected to win, in ln(cost); None: cannot say,
        # as of proposals that are random throughout.
        self.gain: float | None = None
        self._pending: set[Schedule] = set()

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` new candidates; fewer only where the space runs dry."""
        rng, self.gain = self._rng(), None
        batch = [c for c in self.beginning() if self.is_new(c)][:count]
        self._pending.update(candidate.schedule for candidate in batch)
        if len(batch) < count:
            more = self.propose(count - len(batch), rng)
            self._pending.update(candidate.schedule for candidate in more)
            batch += more
        return batch

    def beginning(self) -> list[Candidate]:
        """Return what is proposed before anything else, every time the same."""
        return self.task.defaults()

    @abstractmethod
    def propose(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return up to ``count`` distinct new candidates."""

    def tell(self, records: Sequence[Record]) -> None:
        """Learn from records, failures included; those of other tasks are ignored."""
        for record in records:
            schedule = record.candidate.schedule
            if self.task.contains(record.candidate):
                known = self.records.get(schedule)
                if known is None or _tells_more(record, known):
                    self.records[schedule] = record
                self._pending.discard(schedule)

    def release(self) -> None:
        """Forget what was proposed but not measured: it may be proposed again."""
        self._pending.clear()

    def state(self) -> dict[str, Any]:
        """Return what the records do not say, as plain data."""
        return {}

    # Not abstract: most strategies know nothing but the records.
    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over a `state`; tell the records as well."""

    def is_new(self, candidate: Candidate) -> bool:
        """Say whether a candidate was neither measured nor proposed."""
        return candidate.schedule not in self.records and candidate.schedule not in self._pending

    def ranked(self) -> list[Candidate]:
        """Return the valid candidates, the best by the objective first."""
        known = sorted(
            (r for r in self.records.values() if r.valid), key=lambda r: r.candidate.schedule.knobs
        )
        if not known:
            return []
        latency = np.array([record.latency for record in known])
        joules = self.joules(known)
        # Until an energy is known, latency is the best guide to it.
        objective = self.objective if np.isfinite(joules).any() else LATENCY
        scores = objective.scores(latency, joules)
        return [known[at].candidate for at in np.argsort(scores, kind="stable")]

    def joules(self, records: Sequence[Record]) -> Floats:
        """Return the energies by which records are ranked, NaN where nothing is known."""
        return joules_of(records)

    def samples(
        self,
        count: int,
        rng: np.random.Generator,
        shares: Mapping[str, float] | None = None,
        taken: Sequence[Candidate] = (),
    ) -> list[Candidate]:
        """Draw up to ``count`` new candidates, all different and none of them ``taken``."""
        if count <= 0:
            return []
        known = {candidate.schedule for candidate in taken}
        found: dict[Schedule, Candidate] = {}
        rest = (self.task.sample(rng, shares) for _ in range(_DRAWS * count))
        drawn = itertools.chain(self.task.spread(count, rng, shares), rest, self._remaining(rng))
        for candidate in drawn:
            if len(found) == count:
                break
            if candidate and candidate.schedule not in known and self.is_new(candidate):
                found[candidate.schedule] = candidate
        return list(found.values())

    def _remaining(self, rng: np.random.Generator) -> Iterator[Candidate]:
        """Yield what is left of a space in which random draws no longer find anything new."""
        if self.task.product() > _LISTED:
            return
        new = [candidate for candidate in self.task.enumerate() if self.is_new(candidate)]
        yield from (new[at] for at in rng.permutation(len(new)))

    def _rng(self) -> np.random.Generator:
        """Return a generator that depends on the seed, the task and what is known by now."""
        salt = zlib.crc32(f"{self.task.problem.key}{self.task.layout}".encode())
        return np.random.default_rng([self.seed, salt, len(self.records) + len(self._pending)])


def _tells_more(record: Record, known: Record) -> bool:
    """Say whether a second record of a candidate is the better one to keep.

    One with energy is; else the faster one, which is the less disturbed.
    """
    if (record.joules is None) != (known.joules is None):
        return record.joules is not None
    return record.latency < known.latency


def strategy_names() -> tuple[str, ...]:
    """Return the names of all strategies of our own."""
    return tuple(_STRATEGIES)


def strategy_class(name: str) -> type[Strategy]:
    """Return a strategy's class; `UnknownNameError` for an unknown name."""
    known = {**_STRATEGIES, **_ADAPTERS}
    if name not in known:
        raise UnknownNameError("strategy", name, known)
    module, attribute = known[name]
    found: type[Strategy] = _load(module, attribute)
    return found


def strategy(
    name: str,
    task: Task,
    model: CostModel | None = None,
    seed: int = 0,
    objective: Objective = LATENCY,
    transfer: Transfer | None = None,
) -> Strategy:
    """Build a strategy by name; ``transfer`` is what other tasks' records say, for those who ask.

    Strategies with a model that learns are told by the model.
    """
    if transfer is not None and name in _WARM:
        warm: Strategy = _load(*_WARM[name])(task, model, seed, objective, transfer=transfer)
        return warm
    return strategy_class(name)(task, model, seed, objective)


def starts_warm(name: str) -> bool:
    """Say whether a strategy asks for a `Transfer`, not only for a model that knows others."""
    return name in _WARM


def takes_transfer(name: str) -> bool:
    """Say whether records of other tasks are of use to a strategy, or to the model that it has."""
    return name in _WARM or strategy_class(name).model_name not in ("", "prior")


def _load(module: str, attribute: str) -> Any:
    return getattr(import_module(f"wattune.compiler.search.{module}"), attribute)
