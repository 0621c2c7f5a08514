"""A task's own process beside an ensemble: what it sees, and how much it counts."""

from __future__ import annotations

import numpy as np
import pytest

from wattune.cost_models.task_process import TaskProcess

NAMES = ["knob.a", "knob.b=x", "knob.b=y", "problem.size", "align.a", "bytes.memory"]


def rows(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 8, count), rng.integers(0, 2, count)
    columns = [a, b, 1 - b, np.full(count, 7), a % 3, rng.random(count)]
    return np.stack(columns, axis=1).astype(np.float32)


def truth(matrix: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sin(matrix[:, 0] / 2) + 0.5 * matrix[:, 1]
    return found.astype(np.float64)


def fitted(errors: float) -> TaskProcess:
    shown = rows(40)
    found = TaskProcess.fit(NAMES, shown, truth(shown), np.full(40, errors), np.ones(40))
    assert found is not None
    return found


def test_it_sees_what_tells_candidates_of_one_task_apart() -> None:
    assert [NAMES[at] for at in fitted(1.0).columns] == [
        "knob.a",
        "knob.b=x",
        "knob.b=y",
        "align.a",
    ]
    # Columns of one knob's values have one relevance.
    assert len(fitted(1.0).process.weights) == 3


@pytest.mark.parametrize(("errors", "low", "high"), [(1.0, 0.9, 1.0), (1e-3, 0.0, 0.2)])
def test_it_counts_as_much_as_the_ensemble_errs(errors: float, low: float, high: float) -> None:
    assert low <= fitted(errors).share <= high


def test_where_the_ensemble_knows_nothing_the_process_decides() -> None:
    asked = rows(100, seed=1)
    mean, std = fitted(1.0).mixed(asked, np.zeros(100), np.ones(100))
    assert np.abs(mean - truth(asked)).mean() < 0.1
    assert std.max() < 0.5


def test_records_that_are_all_alike_have_no_process() -> None:
    shown = rows(10)
    assert TaskProcess.fit(NAMES, shown, np.ones(10), np.ones(10), np.ones(10)) is None
    same = np.repeat(shown[:1], 10, axis=0)
    assert TaskProcess.fit(NAMES, same, np.arange(10.0), np.ones(10), np.ones(10)) is None
