"""Benchmarks: the arithmetic of rows, and processes that measure, decline or die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattune.compiler.bench import ceilings, process, run, worker
from wattune.compiler.bench.case import Case, relative_error
from wattune.compiler.bench.data import draw, lengths, load, save, work_of
from wattune.compiler.bench.process import BenchProcess
from wattune.compiler.bench.rotation import places, rotate
from wattune.compiler.bench.rows import Ceiling, make_row
from wattune.compiler.cli.bench import parse_problems
from wattune.errors import MeasureError, ProblemError, UnknownNameError
from wattune.ops import DecodeAttention, MergeStates, TernaryGemm
from wattune.schedules.target import Target

PROBLEM = TernaryGemm(2, 64, 256)
ATTENTION = DecodeAttention(3, 640, 8, 2, 64)


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


def test_the_integer_peak_binds_integers_only() -> None:
    slow = Ceiling(gbps=1e6, gops=1)
    integers = make_row(PROBLEM, "wattune", 1, "hot", 1000, [1.0], slow)
    assert integers.limit == pytest.approx(2 * 2 * 64 * 256 / 1e9)
    floats = make_row(ATTENTION, "wattune", 1, "hot", 1000, [1.0], slow)
    assert floats.limit == pytest.approx(1000 / 1e15)
    assert floats.gops == pytest.approx(work_of(ATTENTION, 0).operations / 1e9)


def test_the_best_measurement_of_a_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([5.0, 7.0, 6.0])
    monkeypatch.setattr(ceilings, "unit_gops", lambda name, threads: 1.0)
    monkeypatch.setattr(ceilings, "read_bandwidth_at", lambda size, threads: next(found))
    limits = ceilings.Ceilings(Target.parse("cpu:generic"))
    assert [limits.at(1 << 20).gbps for _ in range(3)] == [5.0, 7.0, 7.0]


def test_ragged_requests_count_what_they_have() -> None:
    full, ragged = work_of(ATTENTION, 0), work_of(ATTENTION, 0, ragged=True)
    drawn = lengths(ATTENTION, 0)
    assert drawn[0] == 640 and drawn.min() >= 80 and len(set(drawn)) == 3
    keys = 2 * 2 * (64 + 64)
    assert full.bytes - ragged.bytes == keys * (3 * 640 - drawn.sum())
    assert np.array_equal(draw(ATTENTION, 0, ragged=True).inputs["seq_lens"], drawn)
    row = make_row(ATTENTION, "wattune", 1, "hot", 1, [1.0], Ceiling(1, 1), ragged)
    assert row.lengths == "ragged" and row.gops == pytest.approx(ragged.operations / 1e9)
    with pytest.raises(ProblemError, match="ternary_gemm has no requests"):
        draw(PROBLEM, 0, ragged=True)


def test_data_is_the_same_after_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattune.compiler.bench.data._MAPPED_BYTES", 1 << 16)
    drawn = draw(ATTENTION, 0)
    save(drawn, tmp_path)
    found = load(tmp_path)
    for before, after in ((drawn.inputs, found.inputs), (drawn.expected, found.expected)):
        assert list(before) == list(after)
        for name, array in before.items():
            assert after[name].dtype == array.dtype and np.array_equal(after[name], array), name
    found.inputs["k_cache"][...] = 0
    assert load(tmp_path).inputs["k_cache"].any(), "the file is as it was"


def test_whole_copies_lie_side_by_side() -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    sets = rotate({"a": array, "b": array[:3]}, footprint=20_000, moved=5000)
    assert len(sets) == 4, "5.2 KB each"
    for views in sets:
        assert np.array_equal(views["a"], array) and np.array_equal(views["b"], array[:3])
        assert views["a"].ctypes.data % 64 == 0
    sets[0]["a"][:] = 0
    assert np.array_equal(sets[1]["a"], array), "no copy is another's"
    assert len(rotate({"a": array}, footprint=0, moved=1)) == 1
    assert rotate({}, footprint=1 << 30, moved=1) == [{}]


def test_copies_of_which_little_is_read_overlap() -> None:
    array = np.arange(1 << 16, dtype=np.uint16)
    sets = rotate({"a": array}, footprint=1 << 20, moved=1 << 13)
    assert len(sets) == 128
    assert np.array_equal(sets[0]["a"], array)
    starts = [views["a"].ctypes.data - sets[0]["a"].ctypes.data for views in sets]
    assert min(starts) == 0 and (1 << 19) < max(starts) < (1 << 20) + 64
    assert all(start % 64 == 0 for start in starts) and len(set(starts)) == 128
    apart = np.diff(sorted(starts))
    assert apart.min() > (1 << 13) // 3, "nowhere crowded"
    sizes = {"k": 3 << 20, "v": 1 << 20}
    ends = {name: s.max() for name, s in places(sizes, 8 << 20, 1 << 16).items()}
    assert ends["k"] == pytest.approx(3 * ends["v"], rel=0.01), "each by its size"


def test_infinities_must_be_equal() -> None:
    expected = np.array([1.0, -np.inf, 2.0])
    assert relative_error(expected.copy(), expected) == 0.0
    assert relative_error(np.array([1.0, -np.inf, 2.1]), expected) == pytest.approx(0.1 / 5**0.5)
    for wrong in ([1.0, 0.0, 2.0], [np.inf, -np.inf, 2.0], [np.nan, -np.inf, 2.0]):
        assert not relative_error(np.array(wrong), expected) <= 1.0


def test_fields_of_all_kinds() -> None:
    fields = ["window=64", "soft_cap=30.5", "sinks=true", "layout=NHD", "return_lse=false"]
    (problem,) = parse_problems("decode_attention", "1x4096x32x8x128", fields)
    assert problem == DecodeAttention(
        1, 4096, 32, 8, 128, window=64, soft_cap=30.5, sinks=True, layout="NHD"
    )
    with pytest.raises(UnknownNameError, match="windows"):
        parse_problems("decode_attention", "1x4096x32x8x128", ["windows=64"])
    with pytest.raises(ProblemError, match=r"max_blocks.*part of the shape"):
        parse_problems("block_sparse_decode_attention", "1x4096x32x8x128x4", ["max_blocks=5"])
    with pytest.raises(ProblemError, match="BATCHxCONTEXT"):
        parse_problems("decode_attention", "1x4096", [])


class Sleepy(Case):
    """Takes a given time a call."""

    copies, moved, tolerance = 3, 1, 0.0

    def __init__(self, seconds: float, clock: list[float]) -> None:
        self.seconds, self.clock = seconds, clock
        self.called: list[int] = []

    def call(self, copy: int) -> None:
        self.called.append(copy)
        self.clock[0] += self.seconds

    def error(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("call", "warm", "counted"), [(0.01, 3, 7), (0.06, 2, 3), (0.2, 1, 2), (2.0, 1, 1)]
)
def test_slow_calls_are_few(
    call: float, warm: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    case = Sleepy(call, clock)
    runs = worker.measure_round(case, 1, seconds=0.095)
    assert len(case.called) == warm + counted
    assert runs == pytest.approx([call] * counted)
    assert case.called == [(1 + i) % 3 for i in range(warm + counted)], "the rotation goes on"


def test_groups_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [run.Job(str(i), "wattune", ATTENTION) for i in range(5)]
    states = 2 * 3 * 2 * 640 * 64 * 2
    need = 1000 + states
    room = run.SETUP_COPIES * states + 2 * need
    monkeypatch.setattr(run, "free_memory", lambda: (room + 1) / run.MEMORY_SHARE)
    groups = run._groups(jobs, 1000)
    assert [[job.name for job in group] for group in groups] == [["0", "1"], ["2", "3"], ["4"]]
    monkeypatch.setattr(run, "free_memory", lambda: 0)
    assert [len(group) for group in run._groups(jobs, 1000)] == [1] * 5, "at least one at a time"


def test_what_rotates() -> None:
    assert run.rotates(PROBLEM) and run.rotates(ATTENTION)
    assert not run.rotates(MergeStates(1, 2, 8, 64))


def test_rounds_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("wattune", "torch_int_mm", "torch_linear_bf16", "torch_int4pack")
    monkeypatch.setattr(run, "implementations", lambda operator: dict.fromkeys(names))
    # One process at a time: groups of one.
    monkeypatch.setattr(run, "free_memory", lambda: 0)
    settings = run.Settings(threads=1, rounds=2, seconds=0.01, footprint=1 << 20)
    notes: list[str] = []
    seen: list[int] = []
    shown: list[int] = []

    def ceiling(footprint: int) -> Ceiling:
        seen.append(footprint)
        return Ceiling(1, 1)

    def progress(done: int, text: str) -> None:
        shown.append(done)

    rows = run.measure_problem(PROBLEM, {}, settings, ceiling, notes, progress)
    assert [row.implementation for row in rows] == list(names[1:])
    assert all(row.seconds["min"] > 0 for row in rows)
    assert all(footprint >= 1 << 20 for footprint in seen), "the limit is that of the rotation"
    assert notes == ["ternary_gemm 2x64x256: wattune is absent: no library was compiled"]
    assert shown == sorted(shown) and shown[-1] == settings.rounds


def spec_of(**fields: Any) -> dict[str, Any]:
    return {
        "implementation": "another",
        "problem": PROBLEM.to_json(),
        "data": "none",
        "moved": 1,
        "threads": 1,
        "footprint": 0,
        "library": "",
        **fields,
    }


def test_a_process_that_dies_is_told() -> None:
    process_ = BenchProcess(spec_of(), [0])
    with pytest.raises(MeasureError, match=r"another.*allowed:.*torch_int_mm"):
        process_.ready()
    process_.close()


def test_a_process_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "READY_SECONDS", 0.01)
    hung = BenchProcess(spec_of(), [0])
    with pytest.raises(MeasureError, match=r"another: no answer in 0\.01 s"):
        hung.ready()
    hung.close()
    assert hung.process.poll() is not None


def test_rows_are_plain_data() -> None:
    row = make_row(PROBLEM, "wattune", 1, "cold", 10, [1.0], Ceiling(1, 1))
    assert json.loads(json.dumps(row.to_json()))["lengths"] == "full"
