"""Selection: current sources only, one layout for a group, confirmations before single figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.database import Database
from wattune.compiler.measure.confirm import marked
from wattune.compiler.search.groups import groups_of, weights_of
from wattune.compiler.search.standings import standings
from wattune.compiler.search.task import Task
from wattune.compiler.select import select
from wattune.errors import DatabaseError, TargetError
from wattune.ops import Problem, TernaryGemm
from wattune.schedules.candidate import Candidate, Measurement, Record
from wattune.schedules.template import Layout

pytestmark = pytest.mark.usefixtures("fake_templates")
ONE, EIGHT, MANY = SMALL, TernaryGemm(8, 64, 64), TernaryGemm(128, 64, 64)
OTHER = TernaryGemm(1, 128, 64)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "tuned.sqlite") as opened:
        yield opened


def layout(groups: int) -> Layout:
    return Layout.make("fake", groups=groups, order="row")


def point(problem: Problem, groups: int, unroll: int = 1) -> Candidate:
    """Return a candidate in `layout(groups)`."""
    inside = Task(problem, TARGET, layout(groups))
    return next(c for c in inside.enumerate() if c.schedule.values["unroll"] == unroll)


def measured(candidate: Candidate, seconds: float, joules: float | None = None) -> Record:
    record = FakeRunner().record(candidate)
    source = "none" if joules is None else "rapl"
    return replace(record, measurement=Measurement((seconds,), joules, source))


def test_groups_share_data_and_weights_default_to_the_smallest_bucket() -> None:
    wide = TernaryGemm(1, 64, 64, dtype="bfloat16")
    problems = [MANY, ONE, OTHER, wide, ONE]
    assert [group.members for group in groups_of(problems)] == [(MANY, ONE, wide), (OTHER,)]
    assert weights_of(problems, None) == {MANY: 0, ONE: 1, wide: 1, OTHER: 1}
    assert weights_of(problems, {MANY: 0.1, ONE: 0.9}) == {MANY: 0.1, ONE: 0.9, wide: 0, OTHER: 1}


@pytest.mark.parametrize("empty", ["none", "file"])
def test_without_records_a_group_has_the_default_layout_of_its_smallest_bucket(
    empty: str, database: Database
) -> None:
    found = select([MANY, ONE, OTHER], TARGET, None if empty == "none" else database)
    assert {p: s.layout for p, s in found.items()} == dict.fromkeys([MANY, ONE, OTHER], layout(4))
    assert all(s.record is None for s in found.values())
    assert found[ONE].candidate == Task(ONE, TARGET).defaults()[0]


def test_an_absent_database_is_an_error_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="absent"):
        select([ONE], TARGET, tmp_path / "absent.sqlite")


def test_the_best_valid_record_of_the_current_source_and_machine_in_cold_mode(
    database: Database,
) -> None:
    good = measured(point(ONE, 2), 3.0)
    old = measured(point(ONE, 1), 1.0)
    hot = measured(point(ONE, 1, 2), 1.0)
    elsewhere = measured(point(ONE, 1, 4), 1.0)
    for record in (
        good,
        measured(point(ONE, 8), 4.0),
        replace(old, provenance=replace(old.provenance, source_hash="older")),
        replace(hot, conditions=replace(hot.conditions, mode="hot")),
        replace(elsewhere, provenance=replace(elsewhere.provenance, fingerprint="elsewhere")),
        FakeRunner(failure=lambda _: "wrong_result").record(point(ONE, 8, 8)),
        measured(point(OTHER, 1), 0.5),
    ):
        database.add(record)
    found = select([ONE], TARGET, database)[ONE]
    assert (found.candidate, found.layout, found.record) == (good.candidate, layout(2), good)


def test_a_group_takes_the_layout_that_costs_its_weights_least(database: Database) -> None:
    # Best of ONE: layout 1; best of MANY: layout 8; a fair compromise: layout 2.
    times = {ONE: {1: 10.0, 2: 11.0, 8: 20.0}, MANY: {1: 300.0, 2: 110.0, 8: 100.0}}
    for problem, columns in times.items():
        for groups, seconds in columns.items():
            database.add(measured(point(problem, groups), seconds))
            database.add(measured(point(problem, groups, unroll=2), seconds * 1.5))

    def chosen(**weights: float) -> Layout:
        shares: dict[Problem, float] = {}
        if weights:
            shares = {ONE: weights["one"], MANY: weights["many"]}
        found = select([ONE, MANY], TARGET, database, "latency", shares or None)
        assert found[ONE].layout == found[MANY].layout
        assert found[ONE].candidate == point(ONE, int(found[ONE].layout.values[0][1]))
        return found[ONE].layout

    assert chosen() == layout(1)
    assert chosen(one=0.5, many=0.5) == layout(2)
    assert chosen(one=0.01, many=0.99) == layout(8)


def test_of_layouts_equal_within_noise_the_whole_group_decides(database: Database) -> None:
    times = {ONE: {1: 10.0, 2: 10.1}, MANY: {1: 300.0, 2: 100.0}}
    for problem, columns in times.items():
        for groups, seconds in columns.items():
            database.add(measured(point(problem, groups), seconds))
    assert select([ONE, MANY], TARGET, database)[ONE].layout == layout(2)


def test_a_member_without_records_follows_with_its_default_in_the_layout(
    database: Database,
) -> None:
    database.add(measured(point(ONE, 2), 1.0))
    found = select([MANY, ONE], TARGET, database)[MANY]
    assert found.record is None and found.layout == layout(2)
    assert found.candidate == Task(MANY, TARGET, layout(2)).defaults()[0]


def test_within_a_layout_the_newest_confirmation_decides(database: Database) -> None:
    lucky, steady, default = point(ONE, 2), point(ONE, 2, 2), point(ONE, 4)
    for candidate, seconds in ((lucky, 1.0), (steady, 2.0), (default, 4.0)):
        database.add(measured(candidate, seconds))
    assert select([ONE], TARGET, database)[ONE].candidate == lucky
    for session, figures in ((50.0, (1.5, 9.0, 4.0)), (60.0, (3.0, 2.5, 4.0))):
        for candidate, seconds in zip((lucky, steady, default), figures, strict=True):
            database.add(marked(measured(candidate, seconds), session))
    # A later single measurement of something new does not beat what was confirmed.
    database.add(measured(point(ONE, 2, 4), 0.5))
    found = select([ONE], TARGET, database)[ONE]
    assert found.candidate == steady and found.record and found.record.latency == 2.5


def test_a_candidate_whose_newest_record_fails_is_out_and_the_fastest_stands_for_many() -> None:
    bad, noisy = point(ONE, 2), point(ONE, 4)
    records = [measured(bad, 1.0), *(measured(noisy, s) for s in (5.0, 2.0, 3.0))]
    records.append(FakeRunner(failure=lambda _: "wrong_result").record(bad))
    [standing] = standings(records)
    assert (standing.candidate, standing.latency, standing.record.latency) == (noisy, 2.0, 2.0)


def test_energy_is_selected_where_it_was_measured_and_refused_where_not(
    database: Database,
) -> None:
    fast, frugal = point(ONE, 1), point(ONE, 2)
    database.add(measured(fast, 1.0, joules=9.0))
    database.add(measured(frugal, 1.04, joules=5.0))
    assert select([ONE], TARGET, database, "energy@5%")[ONE].candidate == frugal
    assert select([ONE], TARGET, database, "energy@1%")[ONE].candidate == fast
    database.add(measured(point(OTHER, 1), 1.0))
    with pytest.raises(TargetError, match="128x64"):
        select([ONE, OTHER], TARGET, database, "energy")
