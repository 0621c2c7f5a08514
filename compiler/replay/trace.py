"""Replay a strategy on recorded data, and keep what it did evaluation by evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.objective import Objective, no_energy, parse_objective
from wattune.compiler.replay.read import read_recording
from wattune.compiler.replay.recording import Recording
from wattune.compiler.replay.runner import ReplayRunner
from wattune.compiler.search.strategy import (
    Strategy,
    starts_warm,
    strategy_class,
    strategy_names,
    takes_transfer,
)
from wattune.compiler.search.strategy import strategy as strategy_by_name
from wattune.compiler.search.transfer import nearest, transfer_of
from wattune.cost_models.base import CostModel, cost_model
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
    """What one run of a strategy did on a recorded space, in order; ``optimum``: the least cost.

    ``transfer`` names the recordings that it knew before.
    """

    space: str
    strategy: str
    seed: int
    objective: str
    optimum: float
    trajectory: tuple[Evaluation, ...]
    transfer: tuple[str, ...] = ()

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
            "transfer": list(self.transfer),
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
    strategy: str = "bayesian",
    budget: int = 100,
    seed: int = 0,
    objective: str | Objective = "latency",
    batch: int = 1,
    problem: str | None = None,
    transfer: Sequence[str | Path | Recording] = (),
) -> Trace:
    """Search a recorded space and return what the strategy did.

    ``path``: a Wattune database, exported JSON lines, a compact table, or another tool's file (see
    `read_recording`, also for ``problem``); or what that returned. ``budget`` counts distinct
    points, failures included. ``batch`` points are asked for before any of them is told; measuring
    them one by one, the strategy knows most. ``transfer``: recordings of other shapes, operators or
    devices that are known before. Raises `TargetError` for an energy objective where none was
    recorded.
    """
    recorded = path if isinstance(path, Recording) else read_recording(path, problem)
    wanted = parse_objective(objective)
    if min(budget, batch) < 1:
        raise WattuneError(f"replay: budget is {budget}, batch {batch}; allowed: integers >= 1")
    if wanted.needs_energy and not recorded.has_energy:
        raise no_energy(wanted, f"{recorded} was recorded without")
    others = [each if isinstance(each, Recording) else read_recording(each) for each in transfer]
    if others and not takes_transfer(strategy):
        raise WattuneError(
            f"replay: strategy {strategy!r} learns from no other records; allowed with transfer: "
            f"{', '.join(filter(takes_transfer, strategy_names()))}"
        )
    searching, model = _start(recorded, strategy, seed, wanted, others)
    trajectory = _search(recorded, searching, model, budget, batch)
    optimum, names = recorded.optimum(wanted), tuple(map(str, others))
    return Trace(str(recorded), strategy, seed, wanted.name, optimum, tuple(trajectory), names)


def _start(
    recorded: Recording, name: str, seed: int, objective: Objective, others: Sequence[Recording]
) -> tuple[Strategy, CostModel | None]:
    """Return a strategy, and the model that it was given; both know the other recordings."""
    task, model_name = recorded.task, strategy_class(name).model_name
    model = cost_model(model_name, mode=recorded.mode) if model_name else None
    records = [record for each in others for record in each.records()]
    learner = partial(cost_model, "xgboost", mode=recorded.mode)
    transfer = transfer_of(task, records, learner) if others and starts_warm(name) else None
    if model is not None and others:
        model.update(nearest(task, records))
    return strategy_by_name(name, task, model, seed, objective, transfer), model


def _search(
    recorded: Recording, searching: Strategy, model: CostModel | None, budget: int, batch: int
) -> list[Evaluation]:
    runner, objective = ReplayRunner(recorded), searching.objective
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
