"""Replay: recorded data of every kind becomes a space, and a search of it a trace."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, smooth
from tests.compiler.fakes import fake_templates as fake_templates

import wattune as wt
from wattune.compiler.cli import main
from wattune.compiler.database import Database
from wattune.compiler.objective import parse_objective
from wattune.compiler.record_formats import export_t4, record_to_line
from wattune.compiler.replay import Recording, read_recording, replay
from wattune.compiler.replay.recording import Row, recording
from wattune.compiler.replay.runner import ReplayRunner
from wattune.compiler.replay.table import write_table
from wattune.compiler.search.strategy import strategy_names
from wattune.compiler.search.task import Task
from wattune.errors import RecordError, ScheduleError, TargetError, UnknownNameError
from wattune.schedules.candidate import STANDARD_ERROR, Record, Schedule
from wattune.schedules.template import template_of

SPACES = Path(__file__).parents[2] / "benchmarks" / "spaces"
A100 = SPACES / "convolution_milo_A100.json.gz"


def cache_file(**more: Any) -> dict[str, Any]:
    """Return a cache of a 2-knob space with a hole at (4, 1), failures at (2, 1) and (1, 2)."""
    times: dict[tuple[int, int], Any] = {
        (1, 0): 4.0,
        (2, 0): 3.0,
        (4, 0): 2.0,
        (1, 1): 8.0,
        (2, 1): "RuntimeFailedConfig",
        (1, 2): "CompilationFailedConfig",
        (2, 2): 1e20,
        (4, 2): 1.0,
    }
    cache = {
        f"{x},{y}": {"x": x, "y": y, "time": time, "times": [0.9, 1.1], "nvml_energy": 2 * x + 1}
        for (x, y), time in times.items()
    }
    return {
        "device_name": "A Device 7",
        "kernel_name": "scale",
        "problem_size": [64, 32],
        "tune_params_keys": ["x", "y"],
        "tune_params": {"x": [1, 2, 4], "y": [0, 1, 2]},
        "objective": "time",
        "cache": cache,
        **more,
    }


def read(tmp_path: Path, data: Any, **more: Any) -> Recording:
    path = tmp_path / "space.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_recording(path, **more)


def points(found: Recording) -> dict[tuple[Any, ...], Record]:
    """Return the records by knob values, in the order of the knobs' names."""
    return {
        tuple(value for _, value in record.candidate.schedule.knobs): record
        for record in found.records()
    }


# --- files ---------------------------------------------------------------------------------------


def test_a_cache_file_is_a_space_of_its_points_alone(tmp_path: Path) -> None:
    found = read(tmp_path, cache_file())
    assert str(found) == "scale 64 32 on A Device 7"
    records = points(found)
    assert len(records) == found.task.size() == found.task.product() == 8
    assert (4, 1) not in records
    assert records[4, 2].latency == pytest.approx(1e-3), "milliseconds become seconds"
    assert records[4, 2].joules == 9
    assert records[4, 2].facts[STANDARD_ERROR] == pytest.approx(1e-4)
    assert [records[at].failure for at in ((2, 1), (1, 2), (2, 2))] == [
        "crash",
        "build_error",
        "crash",
    ]
    assert found.optimum() == pytest.approx(1e-3)
    assert found.optimum(parse_objective("energy")) == 3


def test_a_cache_file_that_a_killed_run_left_open_is_read(tmp_path: Path) -> None:
    text = json.dumps(cache_file())[:-2] + ",\n"
    assert len(read(tmp_path, text).rows) == 8


def test_t4_says_the_same_as_the_cache_file(tmp_path: Path) -> None:
    invalid = {"RuntimeFailedConfig": "runtime", "CompilationFailedConfig": "compile"}
    results = [
        {
            "configuration": {name: entry[name] for name in ("x", "y")},
            "times": {"runtimes": entry["times"]},
            "invalidity": invalid.get(str(entry["time"]), "correct"),
            "measurements": [
                {"name": "time", "value": entry["time"], "unit": "ms"},
                {"name": "nvml_energy", "value": entry["nvml_energy"], "unit": "J"},
            ],
        }
        for entry in cache_file()["cache"].values()
    ]
    t4 = points(read(tmp_path, {"results": results, "schema_version": "1.0.0"}))
    for point, record in points(read(tmp_path, cache_file())).items():
        assert t4[point].measurement == record.measurement
        assert t4[point].failure == record.failure
        assert t4[point].facts == record.facts


def test_a_table_keeps_everything_and_equal_tables_are_equal_files(tmp_path: Path) -> None:
    found = read(tmp_path, cache_file())
    write_table(found, tmp_path / "one.json.gz")
    again = read_recording(tmp_path / "one.json.gz")
    assert points(again).keys() == points(found).keys()
    assert again.task.defaults()[0].schedule == found.task.defaults()[0].schedule
    for point, record in points(again).items():
        assert record.latency == points(found)[point].latency
        assert record.failure == points(found)[point].failure
        assert record.joules == points(found)[point].joules
    write_table(again, tmp_path / "two.json.gz")
    assert (tmp_path / "two.json.gz").read_bytes() == (tmp_path / "one.json.gz").read_bytes()


@pytest.mark.usefixtures("fake_templates")
class TestOurOwnRecords:
    def records(self) -> list[Record]:
        runner = FakeRunner(
            failure=lambda c: "crash" if c.schedule.values["block"] == 8 else None,
            joules=lambda c: 2 * smooth(c),
        )
        return list(runner.run(list(Task(SMALL, TARGET).enumerate())))

    def test_a_database_its_lines_and_its_table_are_one_space(self, tmp_path: Path) -> None:
        records = self.records()
        with Database(tmp_path / "db.sqlite") as database:
            for record in records:
                database.add(record)
        (tmp_path / "lines.jsonl").write_text("\n".join(map(record_to_line, records)))
        found = read_recording(tmp_path / "db.sqlite")
        write_table(found, tmp_path / "table.json.gz")
        for path in ("lines.jsonl", "table.json.gz"):
            other = read_recording(tmp_path / path)
            assert other.rows.keys() == found.rows.keys() == {r.candidate.schedule for r in records}
            assert other.energy_source == "rapl"
        assert [c.schedule for c in found.task.defaults()] == [
            c.schedule for c in Task(SMALL, TARGET).defaults()
        ]

    def test_counts_of_the_templates_come_along(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("\n".join(map(record_to_line, self.records())))
        found = read_recording(tmp_path / "a.jsonl")
        write_table(found, tmp_path / "a.json.gz")
        for one in (found, read_recording(tmp_path / "a.json.gz")):
            candidate = one.task.defaults()[0]
            counts = template_of(candidate).counts(
                one.problem, one.target, candidate.schedule.values
            )
            assert counts.bytes == {"memory": 1e7}
            assert counts.parallelism == 8

    def test_one_of_several_problems_is_asked_for(self, tmp_path: Path) -> None:
        records = self.records()
        other = replace(SMALL, tokens=7)
        moved = list(FakeRunner().run(list(Task(other, TARGET).enumerate())))
        (tmp_path / "a.jsonl").write_text("\n".join(map(record_to_line, records + moved)))
        with pytest.raises(RecordError, match=r"2 problems.*ternary_gemm 7x64x64"):
            read_recording(tmp_path / "a.jsonl")
        with pytest.raises(UnknownNameError, match="'nothing'; allowed: ternary_gemm"):
            read_recording(tmp_path / "a.jsonl", "nothing")
        found = read_recording(tmp_path / "a.jsonl", str(other))
        assert found.optimum() == pytest.approx(7e-3)

    def test_a_database_too_is_read_from_t4(self, tmp_path: Path) -> None:
        (tmp_path / "t4.json").write_text(json.dumps(export_t4(self.records())))
        found = read_recording(tmp_path / "t4.json")
        assert len(found.rows) == len(self.records())
        assert found.optimum() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "neither JSON"),
        ('{"cache": {}, "tune_params_keys": ["x"]}', "no measurement"),
        ('{"cache": {"1": {"x": 1, "time": -1}}, "tune_params_keys": ["x"]}', "allowed: > 0"),
        ('{"cache": {"1": {"x": 1}}, "tune_params_keys": ["x"]}', "no time"),
        ('{"cache": {"1": {"time": 1}}, "tune_params_keys": ["x"]}', "damaged"),
        ('{"wattune_table": 9}', "version 9"),
        ('{"some": "thing"}', "unknown kind of recorded data"),
        ('{"schedule": 1}\n', "line 1"),
    ],
)
def test_what_is_no_recording_is_refused_in_words(tmp_path: Path, content: str, error: str) -> None:
    with pytest.raises((RecordError, UnknownNameError), match=error):
        read(tmp_path, content)


def test_a_cut_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(RecordError, match="cannot be read"):
        read_recording(tmp_path / "cut.gz")


# --- the space -----------------------------------------------------------------------------------


def rows_of(points: Mapping[tuple[Any, ...], float]) -> list[Row]:
    return [Row("t", {"a": a, "b": b}, seconds) for (a, b), seconds in points.items()]


def test_knobs_have_the_types_of_their_values() -> None:
    found = recording(
        {"operator": "any"},
        TARGET,
        [
            Row("t", {"n": 4.0, "flag": True, "word": "x", "ratio": 0.5, "some": 3}, 1.0),
            Row("t", {"n": -2, "flag": False, "word": "w", "ratio": 1, "late": True}, 2.0),
        ],
    )
    knobs = {knob.name: knob for knob in found.task.branches[0].space.knobs}
    assert knobs["n"].values == (-2, 4), "numbers ascend"
    assert knobs["n"].encode(-2)["n"] == pytest.approx(-np.log2(3))
    assert knobs["flag"].values == (True, False)
    assert knobs["ratio"].values == ("0.5", "1")
    assert knobs["some"].values == ("3", "-"), "a row without the knob"
    assert [knob.ordered for knob in knobs.values()] == [True, False, False, False, False, False]


def test_neighbours_jump_over_holes_and_the_default_is_in_the_middle() -> None:
    grid = {(a, b): 1.0 for a in (1, 2, 4, 8, 16) for b in (1, 2, 3) if (a, b) != (4, 2)}
    task = recording({"operator": "any"}, TARGET, rows_of(grid)).task
    (branch,) = task.branches
    assert branch.default in ({"a": 2, "b": 2}, {"a": 8, "b": 2}, {"a": 4, "b": 1})
    near = [tuple(v.values()) for v in branch.space.neighbours({"a": 2, "b": 2})]
    assert near == [(1, 2), (8, 2), (2, 1), (2, 3)]
    assert {
        tuple(task.candidate(branch, v).schedule.values.values()) for v in branch.space.enumerate()
    } == set(grid)
    assert not branch.space.contains({"a": 4, "b": 2})
    assert branch.space.restrict({"a": 4}).size() == 2
    rng = np.random.default_rng(0)
    drawn = {tuple((branch.space.sample(rng) or {}).values()) for _ in range(300)}
    assert drawn == set(grid)


def test_a_table_of_a_part_of_a_space_needs_not_hold_the_defaults_values() -> None:
    rows = rows_of({(a, b): 1.0 for a in (1, 2, 4) for b in (1, 2)})
    defaults = {rows[0].template: {"a": 64, "b": 2}}
    (branch,) = recording({"operator": "any"}, TARGET, rows, defaults).task.branches
    assert branch.default == {"a": 2, "b": 2}


def test_the_fastest_row_of_a_point_counts_and_failures_lose() -> None:
    rows = [
        Row("t", {"a": 1}, failure="crash"),
        Row("t", {"a": 1}, 2.0),
        Row("t", {"a": 1}, 1.0),
        Row("t", {"a": 1}, failure="timeout"),
    ]
    found = recording({"operator": "any"}, TARGET, rows)
    assert [row.seconds for row in found.rows.values()] == [1.0]


def test_what_is_not_in_the_table_has_no_answer(tmp_path: Path) -> None:
    found = read(tmp_path, cache_file())
    hole = replace(found.task.defaults()[0], schedule=Schedule.make("recorded", {"x": 4, "y": 1}))
    assert not found.task.contains(hole)
    with pytest.raises(ScheduleError, match="not in the table of scale"):
        list(ReplayRunner(found).run([hole]))
    with pytest.raises(ScheduleError, match="not built"):
        template_of(hole).lower(found.problem, found.target, {})


# --- traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_finds_the_optimum_of_a_space_with_failures(
    tmp_path: Path, name: str
) -> None:
    found = read(tmp_path, cache_file())
    trace = replay(found, name, budget=50, batch=2)
    assert trace.evaluations == 8 == len({e.schedule for e in trace.trajectory})
    assert trace.regret == 0
    assert sum(e.failure is not None for e in trace.trajectory) == 3
    assert all(np.isinf(e.cost) == (e.failure is not None) for e in trace.trajectory)
    assert all(seconds > 0 for seconds in trace.wall_seconds)


def test_a_trace_counts_distinct_points_and_holds_what_was_best(tmp_path: Path) -> None:
    trace = replay(read(tmp_path, cache_file()), "exhaustive", budget=6)
    costs = [e.cost for e in trace.trajectory]
    assert list(trace.best_so_far) == np.minimum.accumulate(costs).tolist()
    assert trace.regret == trace.regret_after(6) == pytest.approx(min(costs) / 1e-3 - 1)
    assert trace.regret_after(0) == np.inf
    assert trace.evaluations_to(0.0) is None or trace.best_so_far[-1] == trace.optimum
    data = json.loads(json.dumps(trace.to_json()))
    assert data["evaluations"] == 6
    assert [e["failure"] for e in data["trajectory"]] == [e.failure for e in trace.trajectory]


def test_replay_follows_the_objective(tmp_path: Path) -> None:
    found = read(tmp_path, cache_file())
    trace = replay(found, "exhaustive", objective="energy", budget=50)
    best = min(trace.trajectory, key=lambda e: e.cost)
    assert best.schedule.values["x"] == 1
    assert trace.optimum == 3
    slack = replay(found, "exhaustive", objective="energy@5%", budget=50)
    assert min(slack.trajectory, key=lambda e: e.cost).schedule.values == {"x": 4, "y": 2}
    assert slack.optimum == 9
    blind = cache_file()
    for entry in blind["cache"].values():
        del entry["nvml_energy"]
    with pytest.raises(TargetError, match="recorded without"):
        replay(read(tmp_path, blind), "random", objective="energy")


def test_a_recorded_gpu_space_can_be_searched() -> None:
    found = read_recording(A100)
    assert len(found.rows) == 4362
    assert sum(row.failure is not None for row in found.rows.values()) == 161
    first, same, other = (wt.replay(A100, "random", 60, seed) for seed in (1, 1, 2))
    assert first.best_so_far == same.best_so_far != other.best_so_far
    assert first.regret > 0


def test_the_command_writes_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.json").write_text(json.dumps(cache_file()))
    words = ["replay", str(tmp_path / "space.json"), "--strategy", "random", "--budget", "8"]
    assert main([*words, "--seeds", "3", "--json", str(tmp_path / "runs.json")]) == 0
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [(run["strategy"], run["seed"], run["regret"]) for run in runs] == [
        ("random", seed, 0.0) for seed in range(3)
    ]
    shown = capsys.readouterr().out
    assert "8 points; medians of 3 seeds" in shown
    assert "3/3" in shown
    assert main([*words, "--strategy", "annealing"]) == 2
    assert "'annealing'; allowed:" in capsys.readouterr().err
