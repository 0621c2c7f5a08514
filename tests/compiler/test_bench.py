"""Benchmarks: the arithmetic of rows, and processes that measure, decline or die."""

from __future__ import annotations

import pytest

from wattune.compiler.bench import run
from wattune.compiler.bench.process import BenchProcess
from wattune.compiler.bench.rows import Ceiling, make_row
from wattune.errors import MeasureError
from wattune.ops import TernaryGemm

PROBLEM = TernaryGemm(2, 64, 256)


def test_a_row_against_the_limit_that_binds() -> None:
    ceiling = Ceiling(gbps=10, gops=100)
    moved, operations = 40_000, 2 * 2 * 64 * 256
    row = make_row(PROBLEM, "wattune", 1, "cold", moved, [9e-6, 8e-6, 5e-6], ceiling)
    assert row.seconds == {"median": 8e-6, "min": 5e-6}
    assert row.gbps == pytest.approx(moved / 8e-6 / 1e9)
    assert row.gops == pytest.approx(operations / 8e-6 / 1e9)
    assert row.limit == pytest.approx(4e-6), "memory binds"
    assert row.fraction_of_limit == pytest.approx(0.5)
    assert Ceiling(gbps=10, gops=1).seconds(moved, operations) == pytest.approx(operations / 1e9)


def test_rounds_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("wattune", "torch_int_mm", "torch_linear_bf16", "torch_int4pack")
    monkeypatch.setattr(run, "implementations", lambda operator: dict.fromkeys(names))
    settings = run.Settings(threads=1, rounds=2, seconds=0.01, footprint=1 << 20)
    notes: list[str] = []
    seen: list[int] = []

    def ceiling(footprint: int) -> Ceiling:
        seen.append(footprint)
        return Ceiling(1, 1)

    rows = run.measure_problem(PROBLEM, {}, settings, ceiling, notes)
    assert [row.implementation for row in rows] == list(names[1:])
    assert all(row.seconds["min"] > 0 for row in rows)
    assert all(footprint >= 1 << 20 for footprint in seen), "the limit is that of the rotation"
    assert notes == ["ternary_gemm 2x64x256: wattune is absent: no library was compiled"]


def test_a_process_that_dies_is_told() -> None:
    spec = {
        "implementation": "another",
        "problem": PROBLEM.to_json(),
        "threads": 1,
        "footprint": 0,
        "data": "none",
        "library": "",
    }
    process = BenchProcess(spec, [0])
    with pytest.raises(MeasureError, match=r"another.*allowed:.*torch_int_mm"):
        process.ready()
    process.close()
