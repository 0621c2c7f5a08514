"""A running tune: measures batches, and keeps records, model and strategies in step.

Every record is committed as it arrives; the model's and the strategies' states after each round.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from wattune.compiler.database import Database
from wattune.compiler.measure.runner import Runner
from wattune.compiler.objective import Objective, choose
from wattune.compiler.report_data import PREDICTED
from wattune.compiler.search.energy_stage import PREDICTED_WATTS, EnergyStage, energy_state
from wattune.compiler.search.events import (
    BestImproved,
    EnergyDecided,
    PhaseStarted,
    Progress,
    RecordArrived,
    RoundStarted,
)
from wattune.compiler.search.screen import Screen
from wattune.compiler.search.standings import eligible
from wattune.compiler.search.stopping import Budget, Phase, Settling
from wattune.compiler.search.strategy import Strategy, starts_warm, strategy, strategy_class
from wattune.compiler.search.task import Task
from wattune.compiler.search.transfer import Transfer, nearest, transfer_of
from wattune.cost_models.base import CostModel, cost_model
from wattune.cost_models.prior_model import PriorModel
from wattune.errors import WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record

# Measured over expected latency beyond which a measurement is repeated.
SUSPICIOUS = 20.0


@dataclass(frozen=True)
class Settings:
    """What stays the same during a tune, and what its records are found by."""

    strategy: str
    objective: Objective
    mode: str
    fingerprint: str
    seed: int = 0


@dataclass
class Session:
    """One tune; ``history`` holds the eligible records of each problem, resumed ones included."""

    tasks: Sequence[Task]
    settings: Settings
    database: Database
    runner: Runner
    budget: Budget
    progress: Progress
    prior: PriorModel
    model: CostModel | None = None
    screen: Screen | None = None
    history: dict[Problem, list[Record]] = field(default_factory=dict)
    resumed: dict[Problem, int] = field(default_factory=dict)
    measured: int = 0
    measuring_seconds: float = 0.0
    _strategies: dict[Task, Strategy] = field(default_factory=dict)
    _stages: dict[Problem, EnergyStage] = field(default_factory=dict)
    _settling: dict[Task, Settling] = field(default_factory=dict)
    _best: dict[Problem, Record | None] = field(default_factory=dict)

    def resume(self) -> None:
        """Take over what the database knows: records, model, and by them the trials used."""
        self._resume_model()
        for task in self.tasks:
            known = self.database.records(
                task.problem, task.target, self.settings.fingerprint, self.settings.mode
            )
            mine = [record for record in known if eligible(record)]
            self.history[task.problem] = mine
            self._best[task.problem] = self._best_of(task.problem)
            self.resumed[task.problem] = self.trials(task.problem)
        self.budget.used = sum(self.resumed.values())

    def _resume_model(self) -> None:
        if self.model is None:
            return
        state = self.database.get_state(self._state_name("model"))
        try:
            if state is not None:
                self.model.from_state(state)
        except (WattuneError, KeyError, TypeError, ValueError):
            # Of another version or kind: the records, which are all there, make a new one.
            pass
        # Also of other problems and of older template sources: the model learns from all.
        known = [
            record
            for operator in {task.problem.operator for task in self.tasks}
            for record in self.database.records(
                fingerprint=self.settings.fingerprint, mode=self.settings.mode, operator=operator
            )
        ]
        self.model.update([*known, *nearest(self.tasks[0], self._others)])
        if self.screen is not None:
            self.screen.told(known)

    @cached_property
    def _others(self) -> list[Record]:
        """Return what was measured before of other tasks: shapes, operators and machines alike."""
        mine = {(task.problem, task.target) for task in self.tasks}
        return [
            record
            for record in self.database.records(mode=self.settings.mode)
            if (record.candidate.problem, record.candidate.target) not in mine
        ]

    def trials(self, problem: Problem) -> int:
        """Count the distinct candidates of a problem that have a record."""
        return len({record.candidate.schedule for record in self.history[problem]})

    def strategy(self, task: Task) -> Strategy:
        """Return the strategy of a task, told what is known of it."""
        found = self._strategies.get(task)
        if found is None:
            wanted = self.settings
            others = self._transfer(task)
            physics = strategy_class(wanted.strategy).model_name == self.prior.name
            model = self.prior if physics else self.model
            found = strategy(wanted.strategy, task, model, wanted.seed, wanted.objective, others)
            state = self.database.get_state(self._state_name("strategy", task))
            if state is not None:
                found.restore(state)
            found.tell(self.history[task.problem])
            self._strategies[task] = found
        return found

    def _transfer(self, task: Task) -> Transfer | None:
        """Return what other tasks' records say of this one, for a strategy that asks for it."""
        if not starts_warm(self.settings.strategy) or not self._others:
            return None
        rates, mode = self.prior.rates, self.settings.mode
        return transfer_of(
            task, self._others, partial(cost_model, "xgboost", mode=mode, rates=rates)
        )

    def start(self, phase: Phase) -> None:
        """Tell that a phase begins."""
        self.progress(PhaseStarted(phase.name))

    def round(self, phase: Phase, task: Task, count: int) -> list[Record]:
        """Ask a task's strategy for a batch within the budget and measure it."""
        count = min(count, self.budget.left(phase.trials))
        asked = self.strategy(task)
        if self.screen is None:
            return self.measure(phase, task, asked.ask(count))
        started = time.monotonic()
        batch = self.screen.ask(asked, count)
        self.measuring_seconds += time.monotonic() - started
        return self.measure(phase, task, batch)

    def settled(self, task: Task) -> bool:
        """Count the round that has just ended; say whether the next ones promise mere noise.

        Of latencies: how noisy energies are is another matter, and few of them are measured.
        """
        if self.settings.objective.needs_energy:
            return False
        mine = [r for r in self.history[task.problem] if task.contains(r.candidate)]
        found = self._settling.setdefault(task, Settling())
        return found.told(self.strategy(task).gain, mine)

    def measure(self, phase: Phase, task: Task, batch: Sequence[Candidate]) -> list[Record]:
        """Measure candidates that have no record yet; stops early when the phase's time is up.

        A latency far beyond the expected one is measured once more: on a busy machine a parallel
        kernel can wait for another process during its whole measurement.
        """
        if not batch:
            return []
        self.progress(RoundStarted(phase.name, task.problem, len(batch)))
        records: list[Record] = []
        try:
            expected = self._predictions(batch)
            self._collect(phase, batch, expected, records)
            doubtful = [
                r.candidate
                for r in records
                if r.valid and r.latency > SUSPICIOUS * expected[r.candidate]
            ]
            if doubtful and not phase.late(self.budget):
                self._collect(phase, doubtful, expected, records)
            if self.settings.objective.needs_energy and not phase.late(self.budget):
                self._measure_energy(phase, task.problem, records)
        finally:
            self._learn(task, records)
        return records

    def _collect(
        self,
        phase: Phase,
        batch: Sequence[Candidate],
        expected: Mapping[Candidate, float],
        records: list[Record],
        fact: str = PREDICTED,
        run: Callable[[Sequence[Candidate]], Iterator[Record]] | None = None,
    ) -> None:
        """Commit the records of a batch as they arrive, and add them to ``records``.

        What was expected of each is kept as its ``fact``; ``run`` measures, by default latency.
        """
        started = time.monotonic()
        stream = (run or self.runner.run)(batch)
        try:
            for arrived in stream:
                record = _with_fact(arrived, fact, expected.get(arrived.candidate))
                self._count(phase, record)
                records.append(record)
                if phase.late(self.budget):
                    break
        finally:
            # A generator that is left early cancels its builds when it is closed.
            if close := getattr(stream, "close", None):
                close()
            self.measuring_seconds += time.monotonic() - started

    def _measure_energy(self, phase: Phase, problem: Problem, records: list[Record]) -> None:
        """Measure the energy of some of what is near the best latency, where it takes extra time.

        Runners whose energies come with the latencies have no ``energy`` of their own.
        """
        run = getattr(self.runner, "energy", None)
        if run is None:
            return
        stage = self._stage(problem)
        planned = self.budget.trials // len(self.tasks)
        choice = stage.choose(self.history[problem], self.model, planned)
        if not choice.candidates:
            return
        self.progress(RoundStarted(phase.name, problem, len(choice.candidates)))
        measured: list[Record] = []
        try:
            self._collect(phase, choice.candidates, choice.watts, measured, PREDICTED_WATTS, run)
        finally:
            records += measured
        decision = stage.told(choice, measured)
        self.database.set_state(self._energy_name(problem), stage.to_state())
        self.progress(EnergyDecided(problem, decision))

    def _stage(self, problem: Problem) -> EnergyStage:
        """Return a problem's energy stage, as an earlier tune left it."""
        found = self._stages.get(problem)
        if found is None:
            found = EnergyStage(self.settings.objective, self.settings.seed)
            state = self.database.get_state(self._energy_name(problem))
            if state is not None:
                found.from_state(state)
            self._stages[problem] = found
        return found

    def _energy_name(self, problem: Problem) -> str:
        wanted, target = self.settings, self.tasks[0].target
        return energy_state(wanted.fingerprint, wanted.mode, problem, target)

    def keep(self, record: Record) -> None:
        """Commit a record, then remember it."""
        self.database.add(record)
        self.history[record.candidate.problem].append(record)

    def best(self, problem: Problem) -> Record | None:
        """Return the best single measurement of a problem so far."""
        return self._best.get(problem)

    def seconds_per_candidate(self) -> float:
        """Return the mean time to build and measure a candidate; 1 before the first."""
        return self.measuring_seconds / self.measured if self.measured else 1.0

    def _count(self, phase: Phase, record: Record) -> None:
        """Keep a record, count a candidate's first one as a trial, and tell of it."""
        problem = record.candidate.problem
        if all(known.candidate != record.candidate for known in self.history[problem]):
            self.budget.used += 1
            self.measured += 1
        self.keep(record)
        previous = self._best.get(problem)
        best = self._best[problem] = self._best_of(problem)
        total = self.budget.trials
        self.progress(RecordArrived(phase.name, record, self.budget.used, total, best))
        if best is record:
            self.progress(BestImproved(record, previous))

    def _best_of(self, problem: Problem) -> Record | None:
        """Return the best record of a problem; where energy counts, one with energy."""
        known, objective = self.history[problem], self.settings.objective
        blind = objective.needs_energy and all(record.joules is None for record in known)
        return None if blind else choose(known, objective)

    def _predictions(self, batch: Sequence[Candidate]) -> Mapping[Candidate, float]:
        """Return what is expected before the measurements, in seconds; by physics if no model."""
        latency = (self.model or self.prior).predict(batch).latency
        return {candidate: float(value) for candidate, value in zip(batch, latency, strict=True)}

    def _learn(self, task: Task, records: Sequence[Record]) -> None:
        """Tell model and strategy, and keep what they know."""
        asked = self.strategy(task)
        asked.tell(records)
        asked.release()
        self.database.set_state(self._state_name("strategy", task), asked.state())
        if self.model is not None and records:
            self.model.update(records)
            self.database.set_state(self._state_name("model"), self.model.to_state())
        if self.screen is not None and records:
            self.screen.told(records)

    def _state_name(self, kind: str, task: Task | None = None) -> str:
        wanted = self.settings
        parts: list[Any] = [kind, wanted.fingerprint, wanted.mode]
        if task is not None:
            key = f"{task.problem.key}{task.target.key}{task.layout}"
            digest = hashlib.sha256(key.encode()).hexdigest()[:24]
            parts += [wanted.strategy, wanted.objective.name, digest]
        return "/".join(parts)


def _with_fact(record: Record, name: str, value: float | None) -> Record:
    if value is None:
        return record
    return replace(record, facts={**record.facts, name: value})
