"""The benchmark of search: flat spaces of other tools, medians with intervals, wins and losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from benchmarks.search.flat import Flat
from benchmarks.search.runs import Run, space, space_names
from benchmarks.search.summary import against, interval, median, overall, row

from wattune.compiler.replay.recording import Row, recording
from wattune.schedules.target import Target


def runs(strategy: str, regrets: list[float], at: int = 10) -> list[Run]:
    """Return a run for each regret, reached after ``at`` evaluations."""
    return [
        Run("a", strategy, seed, 100, [(1, 1.0), (at, regret)], 1e-3)
        for seed, regret in enumerate(regrets)
    ]


def test_templates_become_one_parameter_and_every_point_has_one_place() -> None:
    rows = [
        *(Row("one", {"n": n, "kind": kind}, 1.0) for n in (4, 8) for kind in ("x", "y")),
        *(Row("two", {"m": m}, 1.0) for m in (1, 2, 3)),
    ]
    flat = Flat.of(recording({"operator": "any"}, Target.native(1), rows))
    assert flat.parameters == {"template": [0, 1], "n": [4, 8], "kind": [0, 1], "m": [1, 2, 3]}
    assert len(flat.schedules) == 7
    assert flat.schedules[1, 4, 0, 3].values == {"m": 3}
    assert flat.schedules[0, 8, 1, 1].values == {"n": 8, "kind": "y"}


@pytest.mark.parametrize("name", space_names())
def test_every_shipped_space_is_whole(name: str) -> None:
    found = space(name)
    assert found.about["source"]
    assert len(Flat.of(found).schedules) == len(found.rows) == found.task.size()
    assert 0 < found.optimum() < math.inf


def test_a_run_holds_its_regret_until_the_next_improvement() -> None:
    (run,) = runs("s", [0.04], at=60)
    assert [run.regret_after(n) for n in (0, 1, 59, 60, 500)] == [math.inf, 1.0, 1.0, 0.04, 0.04]
    assert run.to_within(0.05) == 60
    assert run.to_within(0.01) == math.inf


def test_medians_and_intervals_hold_infinities() -> None:
    assert median([1, 3, math.inf]) == 3
    assert median([1, math.inf]) == math.inf
    low, high = interval([1.0] * 10 + [2.0] * 10)
    assert (low, high) == (1.0, 2.0)
    assert interval([5.0] * 20) == (5.0, 5.0)
    assert interval([1.0] + [math.inf] * 19) == (math.inf, math.inf)


def test_what_was_not_reached_counts_as_the_budget_and_says_so() -> None:
    rows = [row(runs("good", [0.0] * 5), 100), row(runs("bad", [0.5] * 5), 100)]
    assert rows[1]["evaluations_to_5%"]["median"] is None
    good, bad = overall(rows, 100)
    assert (good["strategy"], good["evaluations_to_5%"], good["at_least"]) == (
        "good",
        pytest.approx(10),
        False,
    )
    assert (bad["evaluations_to_5%"], bad["at_least"]) == (pytest.approx(100), True)


@pytest.mark.parametrize(
    ("mine", "peer", "expected"),
    [
        ([0.0] * 9, [0.5] * 9, "wins"),
        ([0.5] * 9, [0.0] * 9, "losses"),
        ([0.1] * 9, [0.1] * 9, "ties"),
        ([0.0] * 5 + [0.9] * 4, [0.5] * 4 + [0.05] * 5, "ties"),
    ],
)
def test_intervals_decide_who_wins(mine: list[float], peer: list[float], expected: str) -> None:
    rows: list[dict[str, Any]] = [row(runs("ours", mine), 60), row(runs("peer", peer), 60)]
    (found,) = against(rows, lambda name: name == "peer")
    assert found[expected] == 1
    assert found["wins"] + found["ties"] + found["losses"] == 1
