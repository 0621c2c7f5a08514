from __future__ import annotations

import math

import numpy as np
import pytest

from wattune.compiler.objective import choose, front, parse_objective
from wattune.errors import TargetError, UnknownNameError
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    Measurement,
    Provenance,
    Record,
    Schedule,
)
from wattune.schedules.target import Target


def record(number: int, seconds: float | None, joules: float | None = None) -> Record:
    candidate = Candidate(
        TernaryGemm(1, 64, 64), Target("cpu", "x86_64"), Schedule.make("t", {"k": number})
    )
    provenance = Provenance("s", "f")
    if seconds is None:
        return Record(candidate, Conditions(), provenance, failure="crash")
    return Record(candidate, Conditions(), provenance, Measurement((seconds,), joules))


FAST, NEAR, FRUGAL = record(0, 1.00, 9.0), record(1, 1.04, 7.0), record(2, 2.0, 3.0)
BEATEN, FAILED = record(3, 1.05, 8.0), record(4, None)
ALL = [BEATEN, FRUGAL, FAILED, FAST, NEAR]


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("latency", FAST),
        ("energy", FRUGAL),
        ("edp", FRUGAL),
        ("pareto", FRUGAL),
        ("energy@5%", NEAR),
        ("energy@3.9%", FAST),
        ("energy@100%", FRUGAL),
    ],
)
def test_each_objective_chooses_its_own_best(name: str, best: Record) -> None:
    assert choose(ALL, name) is best


def test_a_front_is_ranked_before_what_it_beats_and_its_ends_before_its_middle() -> None:
    latency = np.array([1.05, 2.0, 1.0, 1.04, 1.03, 3.0, 1.0, 1.0])
    joules = np.array([8.0, 3.0, 9.0, 7.0, 7.1, 4.0, np.nan, 9.0])
    places = parse_objective("pareto").scores(latency, joules)
    assert list(places[[1, 2, 7]]) == [1.0] * 3 and places[6] == np.inf
    assert 1 < places[3] < places[4] < 2 == places[0] == places[5]
    # One front after another takes away what is left: each beats all later ones somewhere.
    rng = np.random.default_rng(0)
    latency, joules = rng.random((2, 60)) + 0.5
    places = np.floor(parse_objective("pareto").scores(latency, joules))
    for at in range(60):
        beats = (latency <= latency[at]) & (joules <= joules[at])
        beats &= (latency < latency[at]) | (joules < joules[at])
        assert places[at] == (places[beats].max() + 1 if beats.any() else places.min())


def test_a_slack_ranks_the_too_slow_by_latency_after_all_others() -> None:
    wanted = parse_objective("energy@5%")
    latency, joules = np.array([1.0, 3.0, 2.0, 1.05]), np.array([9.0, 1.0, 1.0, 8.0])
    assert list(np.argsort(wanted.scores(latency, joules))) == [3, 0, 2, 1]
    # Held against a latency from elsewhere, all of these are too slow.
    assert list(np.argsort(wanted.scores(latency, joules, best=0.5))) == [0, 3, 2, 1]


@pytest.mark.parametrize("text", ["speed", "", "energy@", "energy@x%", "energy@-1%", "energy@101%"])
def test_another_name_is_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown objective .*; allowed: edp, energy, "):
        parse_objective(text)


def test_energy_is_measured_or_refused() -> None:
    with pytest.raises(TargetError, match="'energy@5%' needs measured energy: none of the records"):
        choose([record(0, 1.0), record(1, 2.0)], "energy@5%")
    # One record without energy is not chosen for energy, however fast.
    assert choose([record(0, 0.1), NEAR], "energy") is NEAR
    assert choose([FAILED], "energy") is None


def test_the_front_holds_what_nothing_beats() -> None:
    assert front(ALL) == [FAST, NEAR, FRUGAL]
    twin = record(5, 1.0, 9.0)
    assert front([FAST, twin]) == [FAST]
    unmetered = record(6, 0.5)
    assert front([*ALL, unmetered]) == [unmetered, FAST, NEAR, FRUGAL]
    assert front([FAILED]) == [] and math.isinf(FAILED.latency)
