"""Measure a cost model: train on some records of each problem, compare on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattune.cost_models.base import CostModel
from wattune.cost_models.metrics import (
    average_peak_score,
    pairwise_accuracy,
    regret,
    spearman,
)
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record

# Ranks of fewer held-out candidates say nothing.
_LEAST_HELD_OUT = 8
_PICKS = 5


@dataclass(frozen=True)
class Accuracy:
    """How well a model orders the ``held_out`` candidates of one problem; see `metrics`."""

    problem: Problem
    trained: int
    held_out: int
    spearman: float
    pairwise: float
    peak_at_5: float
    regret_at_5: float


def evaluate(
    model: CostModel, records: Sequence[Record], train: int = 64, seed: int = 0
) -> list[Accuracy]:
    """Train a fresh model on ``train`` records of each problem and test it on the rest.

    The records should be of one machine and of the model's mode. All records of a candidate fall
    on the same side; the trained side keeps failures, the held-out one has none. Problems with
    fewer than 8 candidates left for the test are trained on, but not reported.
    """
    rng = np.random.default_rng(seed)
    by_problem: dict[Problem, dict[Candidate, list[Record]]] = {}
    for record in records:
        candidates = by_problem.setdefault(record.candidate.problem, {})
        candidates.setdefault(record.candidate, []).append(record)
    shown: list[Record] = []
    tests: list[tuple[Problem, int, list[list[Record]]]] = []
    for problem, candidates in by_problem.items():
        groups = list(candidates.values())
        groups = [groups[at] for at in rng.permutation(len(groups))]
        shown.extend(record for group in groups[:train] for record in group)
        held_out = [group for group in groups[train:] if any(record.valid for record in group)]
        if len(held_out) >= _LEAST_HELD_OUT:
            tests.append((problem, min(train, len(groups)), held_out))
    model.update(shown)
    return [_accuracy(model, *test) for test in tests]


def _accuracy(
    model: CostModel, problem: Problem, trained: int, held_out: list[list[Record]]
) -> Accuracy:
    predicted = model.predict([group[0].candidate for group in held_out]).latency
    measured = np.array([min(record.latency for record in group) for group in held_out])
    return Accuracy(
        problem=problem,
        trained=trained,
        held_out=len(held_out),
        spearman=spearman(predicted, measured),
        pairwise=pairwise_accuracy(predicted, measured),
        peak_at_5=average_peak_score(predicted, measured, _PICKS),
        regret_at_5=regret(predicted, measured, _PICKS),
    )
