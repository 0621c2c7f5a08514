"""Files of benchmark results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wattune.compiler.bench.results import known_rows, results_file, write_rows, write_runs


def row(problem: str, threads: int, seconds: float) -> dict[str, Any]:
    return {"problem": problem, "threads": threads, "seconds": seconds}


def test_another_machine_has_another_file(tmp_path: Path) -> None:
    first = results_file(tmp_path, "speed", "Chip A (1-2)")
    write_rows(first, {"machine": {"device": "Chip A (1-2)"}}, [row("p", 1, 1.0)])
    assert results_file(tmp_path, "speed", "Chip A (1-2)") == first
    second = results_file(tmp_path, "speed", "Chip B (3-4)")
    assert second.name == first.stem + "-chip-b-3-4.json"


def test_rows_measured_again_replace_those_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_rows(path, {"machine": 1}, [row("p", 1, 1.0), row("p", 2, 2.0)])
    write_rows(path, {"machine": 2}, [row("p", 1, 3.0), row("q", 1, 4.0)])
    expected = [row("p", 2, 2.0), row("p", 1, 3.0), row("q", 1, 4.0)]
    assert json.loads(path.read_text()) == {"machine": 2, "rows": expected}


def test_rows_are_found_by_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert known_rows(path) == []
    rows = [{**row("p", 1, 1.0), "seed": seed} for seed in range(3)]
    for each in rows:
        write_rows(path, {"machine": 1}, [each])
    assert known_rows(path) == rows
    assert known_rows(path, problem="p", seed=1) == rows[1:2]
    assert known_rows(path, problem="q") == []


def test_runs_measured_again_replace_those_before(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    runs = [{"machine": {"device": "A"}, "rows": [row("p", n, 1.0)]} for n in (1, 2)]
    write_runs(path, runs)
    again = {"machine": {"device": "A"}, "rows": [row("p", 1, 9.0)]}
    write_runs(path, [again])
    assert json.loads(path.read_text()) == [runs[1], again]
    assert results_file(tmp_path, "x", "A").name.endswith("-x.json")
