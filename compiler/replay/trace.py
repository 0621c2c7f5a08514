"""Replay a strategy on recorded data, and keep what it did evaluation by evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.measure.runner import Runner
from wattune.compiler.objective import Objective, no_energy, parse_objective
from wattune.compiler.replay.read import read_recording
from wattune.compiler.replay.recording import Recording
from wattune.compiler.replay.runner import ReplayRunner
from wattune.compiler.search.strategy import strategy as strategy_by_name
from wattune.compiler.search.strategy import strategy_class
from wattune.cost_models.base import cost_model
from wattune.errors import WattuneError
from wattune.schedules.candidate import FailureKind, Schedule


@dataclass(frozen=True)
class Evaluation:
    """One distinct point: what came of it, and the seconds that choosing it took.

    ``cost``: by the objective, infinite for a failure. ``wall_seconds``: proposing it and learning
    from it, its share of a batch; the table's answer costs nothing.
    """

    schedule: Schedule
    cost: float
    failure: FailureKind | None
    wall_seconds: float


@dataclass(frozen=True)
class Trace:
    """What one run of a strategy did on a recorded space, in order; ``optimum``: the least cost."""

    space: str
    strategy: str
    seed: int
    objective: str
    optimum: float
    trajectory: tuple[Evaluation, ...]

    @property
    def evaluations(self) -> int:
        """Count the distinct points that were tried, failures included."""
        return len(self.trajectory)

    @cached_property
    def best_so_far(self) -> tuple[float, ...]:
        """Return the least cost after each evaluation; infinite until one is valid."""
        costs = np.array([evaluation.cost for evaluation in self.trajectory])
        return tuple(np.minimum.accumulate(costs).tolist()) if len(costs) else ()

    @property
    def regret(self) -> float:
        """Return the best found over the optimum, minus 1."""
        return self.regret_after(self.evaluations)

    def regret_after(self, evaluations: int) -> float:
        """Return the regret after so many evaluations, or after all where there are fewer."""
        best = self.best_so_far[: max(0, evaluations)]
        return best[-1] / self.optimum - 1 if best else float("inf")

    def evaluations_to(self, share: float = 0.05) -> int | None:
        """Return how many evaluations it took to a regret of ``share``; None if it never came."""
        limit = self.optimum * (1 + share)
        return next((at for at, best in enumerate(self.best_so_far, 1) if best <= limit), None)

    @property
    def wall_seconds(self) -> tuple[float, ...]:
        """Return the seconds that each evaluation took to propose and to learn from."""
        return tuple(evaluation.wall_seconds for evaluation in self.trajectory)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; costs of failures are None."""
        return {
            "space": self.space,
            "strategy": self.strategy,
            "seed": self.seed,
            "objective": self.objective,
            "optimum": self.optimum,
            "evaluations": self.evaluations,
            "regret": self.regret if np.isfinite(self.regret) else None,
            "best_so_far": [b if np.isfinite(b) else None for b in self.best_so_far],
            "wall_seconds": list(self.wall_seconds),
            "trajectory": [
                {
                    "schedule": e.schedule.to_json(),
                    "cost": None if e.failure else e.cost,
                    "failure": e.failure,
                }
                for e in self.trajectory
            ],
        }


def replay(
    path: str | Path | Recording,
    strategy: str = "evolutionary",
    budget: int = 100,
    seed: int = 0,
    objective: str | Objective = "latency",
    batch: int = 1,
    problem: str | None = None,
) -> Trace:
    """Search a recorded space and return what the strategy did.

    ``path``: a Wattune database, exported JSON lines, a compact table, or another tool's file (see
    `read_recording`, also for ``problem``); or what that returned. ``budget`` counts distinct
    points, failures included. ``batch`` points are asked for before any of them is told; measuring
    them one by one, the strategy knows most. Raises `TargetError` for an energy objective where
    none was recorded.
    """
    recorded = path if isinstance(path, Recording) else read_recording(path, problem)
    wanted = parse_objective(objective)
    if min(budget, batch) < 1:
        raise WattuneError(f"replay: budget is {budget}, batch {batch}; allowed: integers >= 1")
    if wanted.needs_energy and not recorded.has_energy:
        raise no_energy(wanted, f"{recorded} was recorded without")
    trajectory = _search(recorded, ReplayRunner(recorded), strategy, budget, seed, wanted, batch)
    optimum = recorded.optimum(wanted)
    return Trace(str(recorded), strategy, seed, wanted.name, optimum, tuple(trajectory))


def _search(
    recorded: Recording,
    runner: Runner,
    name: str,
    budget: int,
    seed: int,
    objective: Objective,
    batch: int,
) -> list[Evaluation]:
    model_name = strategy_class(name).model_name
    model = cost_model(model_name, mode=recorded.mode) if model_name else None
    searching = strategy_by_name(name, recorded.task, model, seed, objective)
    found: list[Evaluation] = []
    while len(found) < budget:
        start = time.perf_counter()
        asked = searching.ask(min(batch, budget - len(found)))
        if not asked:
            break
        records = list(runner.run(asked))
        searching.tell(records)
        if model is not None:
            model.update(records)
        seconds = (time.perf_counter() - start) / len(asked)
        schedules = [record.candidate.schedule for record in records]
        found += [
            Evaluation(schedule, float(cost), record.failure, seconds)
            for schedule, cost, record in zip(
                schedules, _costs(recorded, schedules, objective), records, strict=True
            )
        ]
    return found


def _costs(
    recorded: Recording, schedules: Sequence[Schedule], objective: Objective
) -> Sequence[float]:
    costs: Sequence[float] = recorded.costs(schedules, objective).tolist()
    return costs
