"""Measure a cost model: train on some records of a task, compare on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.base import CostModel
from wattune.cost_models.matrix import FeatureMatrix
from wattune.cost_models.metrics import (
    average_peak_score,
    banded_spearman,
    coverage,
    negative_log_likelihood,
    pairwise_accuracy,
    regret,
    spearman,
)
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.target import Target

Floats = NDArray[np.float64]
Groups = Sequence[Sequence[Record]]

# Ranks of fewer held-out candidates say nothing.
LEAST_HELD_OUT = 8
_PICKS = 5
# More would not change the ranks' correlation, only take its time.
_MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Accuracy:
    """How well a model knows the held-out candidates of one task; see `metrics`.

    ``within_1``, ``within_2`` and ``nll`` say whether its uncertainty is right. ``energy_skill``
    is Spearman's correlation of mean power among candidates that are equally fast; None where too
    few held-out records have joules.
    """

    spearman: float
    pairwise: float
    peak_at_5: float
    regret_at_5: float
    within_1: float
    within_2: float
    nll: float
    energy_skill: float | None


@dataclass(frozen=True)
class Trial:
    """One split of one task: what was measured of the held-out candidates, and predicted."""

    problem: Problem
    target: Target
    trained: int
    measured: Floats
    predicted: Floats
    accuracy: Accuracy

    @property
    def held_out(self) -> int:
        """Count the held-out candidates."""
        return len(self.measured)


def evaluate(
    make: Callable[[], CostModel],
    records: Sequence[Record],
    train: int = 64,
    seed: int = 0,
    others: Sequence[Record] = (),
) -> list[Trial]:
    """Train a fresh model on ``train`` candidates of each task and test it on the rest.

    A task is a problem on a target. Before that the model learns from those ``others`` that are
    not of the task: other shapes, operators or devices. The records should be of the model's mode,
    and of one machine. All records of a candidate fall on the same side; the trained side keeps
    failures, the held-out one, of at most 1000 candidates, has none. Records of templates that are
    gone are left out; tasks with fewer than 8 candidates left for the test are not reported.
    """
    by_task: dict[tuple[Problem, Target], dict[Candidate, list[Record]]] = {}
    usable = FeatureMatrix().usable
    for record in records:
        if not usable(record.candidate):
            continue
        candidates = by_task.setdefault(_task(record), {})
        candidates.setdefault(record.candidate, []).append(record)
    found = []
    for task, candidates in by_task.items():
        groups = list(candidates.values())
        order = np.random.default_rng(seed).permutation(len(groups))
        shown = [groups[at] for at in order[:train]]
        tests = [groups[at] for at in order[train:] if any(r.valid for r in groups[at])]
        tests = tests[:_MOST_HELD_OUT]
        if len(shown) < train or len(tests) < LEAST_HELD_OUT:
            continue
        model = make()
        before = [record for record in others if _task(record) != task]
        model.update([*before, *(record for group in shown for record in group)])
        found.append(_trial(model, len(shown), tests))
    return found


def _task(record: Record) -> tuple[Problem, Target]:
    return record.candidate.problem, record.candidate.target


def mean_accuracy(trials: Sequence[Trial]) -> dict[str, float | None]:
    """Return the mean of every figure over trials; None where no trial has it."""
    found: dict[str, float | None] = {}
    for name in (field.name for field in fields(Accuracy)):
        known = [v for trial in trials if (v := getattr(trial.accuracy, name)) is not None]
        found[name] = float(np.mean(known)) if known else None
    return found


def summary(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return one row a task, the mean over its trials, as plain data."""
    by_task: dict[tuple[Problem, Target], list[Trial]] = {}
    for trial in trials:
        by_task.setdefault((trial.problem, trial.target), []).append(trial)
    return [
        {
            "name": str(problem),
            "problem": problem.to_json(),
            "target": target.to_json(),
            "splits": len(mine),
            "trained": mine[0].trained,
            "held_out": mine[0].held_out,
            **mean_accuracy(mine),
        }
        for (problem, target), mine in by_task.items()
    ]


def _trial(model: CostModel, trained: int, tests: Groups) -> Trial:
    found = model.predict([group[0].candidate for group in tests])
    best = [min(group, key=lambda record: record.latency) for group in tests]
    measured = np.array([record.latency for record in best])
    predicted, std = found.latency, found.latency_std
    error = np.array([record.standard_error for record in best])
    accuracy = Accuracy(
        spearman=spearman(predicted, measured),
        pairwise=pairwise_accuracy(predicted, measured, error),
        peak_at_5=average_peak_score(predicted, measured, _PICKS),
        regret_at_5=regret(predicted, measured, _PICKS),
        within_1=coverage(predicted, measured, std, 1.0),
        within_2=coverage(predicted, measured, std, 2.0),
        nll=negative_log_likelihood(predicted, measured, std),
        energy_skill=None
        if found.energy is None
        else _energy_skill(found.energy / predicted, best),
    )
    candidate = best[0].candidate
    return Trial(candidate.problem, candidate.target, trained, measured, predicted, accuracy)


def _energy_skill(power: Floats, best: Sequence[Record]) -> float | None:
    """Compare predicted with measured mean power in watts, where joules were measured."""
    known = [(at, r.joules) for at, r in enumerate(best) if r.joules is not None]
    if not known:
        return None
    latency = np.array([best[at].latency for at, _ in known])
    joules = np.array([value for _, value in known])
    return banded_spearman(power[[at for at, _ in known]], joules / latency, latency)


def by_machine(records: Sequence[Record]) -> Mapping[tuple[str, str, str], list[Record]]:
    """Group valid and failed records by target, machine and mode: figures of one belong together.

    The keys are `Target.key`, the fingerprint and the mode, in the order in which they came.
    """
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        target, machine = record.candidate.target.key, record.provenance.fingerprint
        found.setdefault((target, machine, record.conditions.mode), []).append(record)
    return found
