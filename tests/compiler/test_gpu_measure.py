"""Measuring on a GPU, an emulated one: memory, graphs, faults, and the whole search."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wattune.compiler import tuner
from wattune.compiler.measure import gpu_worker, supervisor
from wattune.compiler.measure.cases import within
from wattune.compiler.measure.ffi import Call, Library
from wattune.compiler.measure.gpu_device import Event, GpuDevice
from wattune.compiler.measure.gpu_timing import (
    MOST_CALLS,
    GpuTimer,
    calls_of,
    gpu_footprint,
    replays_of,
)
from wattune.compiler.measure.memory import state_bytes
from wattune.compiler.measure.pool import Rotation
from wattune.compiler.measure.runner import LocalRunner
from wattune.errors import DeviceError, MeasureError, TargetError
from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, operator
from wattune.schedules import nvidia
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target
from wattune.schedules.template import _MODULES, _templates

HERE = Path(__file__).parent
PROBLEM = DecodeAttention(3, 37, 4, 2, 32, dtype="float32")
HANGING = DecodeAttention(1, 37, 4, 2, 32, dtype="float32")


@pytest.fixture
def device(emulated_gpu: Target) -> GpuDevice:
    return GpuDevice()


def test_watched_memory_shows_what_is_written_around_it(device: GpuDevice) -> None:
    memory = device.watched(100, writable=True, alignment=16)
    assert memory.address % 16 == 0
    assert memory.address % 32 != 0, "more than is promised"
    memory.write(np.arange(100, dtype=np.uint8))
    assert memory.intact()
    np.testing.assert_array_equal(memory.read(), np.arange(100, dtype=np.uint8))
    for place in (memory.address - 1, memory.address + 100):
        kept = device.download(place, 1)
        device.upload(place, np.zeros(1, np.uint8))
        assert not memory.intact()
        device.upload(place, kept)
        assert memory.intact()


def test_regions_hold_what_is_drawn_again_and_again(device: GpuDevice) -> None:
    drawn = np.arange(96, dtype=np.uint8)
    region = device.region(1000, lambda count: drawn)
    np.testing.assert_array_equal(device.download(region.address, 1000), np.resize(drawn, 1000))


def test_captured_work_runs_when_the_graph_is_launched(device: GpuDevice) -> None:
    first, second = (device.watched(8, True, 64) for _ in range(2))
    first.write(np.full(8, 1, np.uint8))
    second.write(np.full(8, 2, np.uint8))
    graph = device.capture(lambda: device.copy(second.address, first.address, 8))
    assert second.read()[0] == 2
    begin, end = Event(device), Event(device)
    begin.record()
    graph.launch()
    end.record()
    end.wait()
    assert second.read()[0] == 1
    assert end.passed()
    assert end.seconds_since(begin) >= 0


def test_out_of_memory_says_how_much_there_is(
    device: GpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = device.driver.status
    monkeypatch.setattr(
        device.driver,
        "status",
        lambda name, *rest: nvidia.OUT_OF_MEMORY if "Alloc" in name else status(name, *rest),
    )
    with pytest.raises(DeviceError, match=r"out of device memory: 5 GB asked for, .* GB are free"):
        device.watched(5_000_000_000, True, 64)


def test_graphs_hold_whole_rotations_and_end_in_time() -> None:
    assert calls_of(10e-6, 4) == 100
    assert calls_of(2e-3, 1) == 1
    assert calls_of(3e-6, 500) == 500
    assert calls_of(1e-6, 10_000) == MOST_CALLS
    assert calls_of(1e-3, 512) == 50, "a rotation of half a second is cut"
    assert replays_of(1e-3, 0.16) == 160
    assert replays_of(0.02, 0.16) == 15
    assert replays_of(2.0, 0.16) == 3
    assert gpu_footprint(60 << 20, 141 << 30) == 256 << 20
    assert gpu_footprint(96 << 20, 48 << 30) == 384 << 20


class Kernel:
    """Stands in for a library: notes where its argument lies, and copies from there."""

    def __init__(self, device: GpuDevice, target: int) -> None:
        self.device, self.target = device, target
        self.seen: list[int] = []

    def call(self, name: str, call: Call) -> None:
        at = ctypes.cast(call.slot(0), ctypes.POINTER(ctypes.c_uint64))[0]
        self.seen.append(at)
        self.device.copy(self.target, at, 8)


def test_calls_of_a_graph_rotate_over_all_copies(device: GpuDevice) -> None:
    memory = device.watched(64, True, 64)
    places = memory.address + 8 * np.arange(5, dtype=np.int64)
    target = device.watched(8, True, 64)
    kernel = Kernel(device, target.address)
    library: Library = kernel  # type: ignore[assignment]
    timer = GpuTimer(device, library, Call([(0, "uint8", (8,))]), [(0, Rotation(places))])
    timer.once()
    timer.capture(8)
    expected = [int(places[i % 5]) for i in range(10)]
    assert kernel.seen == expected
    seconds = timer.replay(3)
    assert len(seconds) == 3
    assert (seconds >= 0).all()
    assert kernel.seen == expected, "a replay runs no Python"


def test_cases_to_verify_fit_the_bytes_that_may_be_drawn() -> None:
    problem = DecodeAttention(16, 131072, 64, 8, 128)
    found = within(problem, 128 << 20)
    assert (found.batch, found.context) == (1, 32768)
    assert state_bytes(found) <= 128 << 20 < 2 * state_bytes(found)
    assert within(PROBLEM, 128 << 20) == PROBLEM
    assert dataclasses.replace(found, batch=16, context=131072) == problem


@pytest.mark.parametrize(
    "problem",
    [
        PROBLEM,
        DecodeAttention(2, 50, 4, 2, 32, page_size=16, sinks=True),
        BlockSparseDecodeAttention(2, 300, 4, 2, 32, max_blocks=3),
    ],
)
def test_timing_needs_every_input_but_no_cache(problem: DecodeAttention) -> None:
    op = operator(problem.operator)
    drawn = op.timing_inputs(problem, np.random.default_rng(0))
    full = op.make_inputs(problem, np.random.default_rng(0))
    inputs = [a for a in op.arguments(problem) if a.role == "input"]
    assert set(drawn) == {a.name for a in inputs}
    for name, values in drawn.items():
        assert (values.shape, values.dtype) == (full[name].shape, full[name].dtype)


def faulty(target: Target, fault: str) -> Candidate:
    schedule = Schedule.make("faulty_gpu", {"fault": fault, "repeat": 1})
    return Candidate(HANGING if fault == "hang" else PROBLEM, target, schedule)


@pytest.fixture
def faulty_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make `faulty_gpu` the only templates for GPUs; build workers import it by this name."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setitem(_MODULES, "cuda", ("faulty_gpu",))
    _templates.cache_clear()
    yield "faulty_gpu"
    _templates.cache_clear()


def test_every_fault_is_a_record_and_the_run_goes_on(
    emulated_gpu: Target, faulty_module: str
) -> None:
    expected = {
        "build": ("build_error", "a bug in a template"),
        "hang": ("timeout", "no answer within 6"),
        "crash": ("wrong_result", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        "wrong": ("wrong_result", "out[0, 0, 0, 0] is"),
        "unwritten": ("wrong_result", "out[0, 0, 3, 0] is nan"),
        "overrun": ("wrong_result", "out is overrun"),
        "overwrite": ("wrong_result", "v_cache was overwritten"),
    }
    candidates = [faulty(emulated_gpu, fault) for fault in (*expected, "none")]
    with LocalRunner(emulated_gpu, run_timeout=6, template_modules=(faulty_module,)) as runner:
        records = {str(r.candidate.schedule.values["fault"]): r for r in runner.run(candidates)}
    for fault, (kind, message) in expected.items():
        assert records[fault].failure == kind, (fault, records[fault].message)
        assert message in records[fault].message
    good = records["none"]
    assert good.valid, good.message
    assert good.provenance.fingerprint == fingerprint(emulated_gpu)
    assert good.provenance.fingerprint.startswith("emulated-sm-90-")
    assert good.facts["verified_context"] == 37
    assert good.facts["graph_calls"] >= 1
    assert good.measurement is not None
    assert good.measurement.energy_source == "none"


def test_what_is_measured_again_is_not_built_again(
    emulated_gpu: Target, faulty_module: str
) -> None:
    """For its facts, its latency, its energy and among the finalists: one build."""
    candidate = faulty(emulated_gpu, "none")
    with LocalRunner(emulated_gpu, template_modules=(faulty_module,)) as runner:
        assert runner.surplus > 1
        assert runner.facts([candidate])[candidate]["attend.threads"] > 0
        records = [*runner.run([candidate]), *runner.energy([candidate])]
        records += runner.interleaved([candidate], 1)
        assert all(record.valid for record in records)
        assert runner._pool._count == 1


class WithFaults(LocalRunner):
    """Knows `faulty_gpu` in its build workers."""

    def __init__(self, target: Target, mode: str, **options: Any) -> None:
        super().__init__(target, mode, template_modules=("faulty_gpu",), **options)


def test_a_tune_on_the_machine_s_own_gpu(
    emulated_gpu: Target, faulty_module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of the search, nothing of it told that this is a GPU: faults on the way included."""
    monkeypatch.setattr(tuner, "LocalRunner", WithFaults)
    target = Target.parse("cuda")
    report = tuner.tune([PROBLEM], target, tmp_path / "tuned.sqlite", trials=8, seed=1)
    (found,) = report.problems
    assert report.trials == 8
    assert found.selected is not None
    assert found.selected.candidate.schedule.values["fault"] == "none"
    assert found.selected.provenance.fingerprint == fingerprint(emulated_gpu)
    assert found.failures


def test_without_a_driver_a_tune_says_so(faulty_module: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver: .* cannot be opened"):
        Target.parse("cuda")
    path = tmp_path / "tuned.sqlite"
    with pytest.raises(TargetError, match="the target cannot run here: no NVIDIA driver"):
        tuner.tune([PROBLEM], Target.parse("cuda:sm_90a"), path, trials=1)
    assert not path.exists()


def test_a_fault_that_shows_later_ends_the_process(
    emulated_gpu: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real device tells of an illegal access at the next wait, and is lost from then on."""

    class Left(Exception):
        pass

    def leave(status: int) -> None:
        raise Left(status)

    setup = {"mode": "cold", "footprint": 1 << 20, "seed": 0, "most_drawn": 1 << 20, "device": 0}
    measurer = gpu_worker.GpuMeasurer(setup)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(gpu_worker, "Library", lambda path: SimpleNamespace(close=lambda: None))
    lost = DeviceError("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (700)", 700)
    refused = MeasureError("wrong_result", "kernel answered with an error")

    def outcome(raised: Exception, waiting: Exception | None = None) -> dict[str, Any]:
        def fail(*arguments: object) -> None:
            raise raised

        def finish() -> None:
            if waiting is not None:
                raise waiting

        monkeypatch.setattr(measurer, "_measure", fail)
        monkeypatch.setattr(measurer._device, "finish", finish)
        return measurer.answer({"library": "candidate.so"})

    for raised, waiting in ((lost, None), (refused, lost)):
        with pytest.raises(Left):
            outcome(raised, waiting)
        assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in capsys.readouterr().err
    assert outcome(refused) == {"failure": "wrong_result", "message": str(refused)}
    full = DeviceError("out of device memory: 5 GB asked for", nvidia.OUT_OF_MEMORY)
    assert outcome(full) == {"failure": "crash", "message": str(full)}


def test_a_known_gpu_is_the_target_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of a bundle for cuda:sm_90a and of a tune on an H200 are of one target."""
    fields = {"kind": "cuda", "arch": "sm_90a", "device": "NVIDIA H200", "cores": 132}
    sizes = {"threads": 132, "l1": 232448, "l2": 1 << 25, "l3": 1 << 25, "memory": 150 << 30}
    monkeypatch.setattr(nvidia, "gpu_fields", lambda: {**fields, **sizes})
    assert Target.parse("cuda") == Target.parse("cuda:sm_90a")
    monkeypatch.setattr(nvidia, "gpu_fields", lambda: {**fields, **sizes, "cores": 114})
    assert Target.parse("cuda").cores == 114


def test_code_for_another_architecture_is_refused(emulated_gpu: Target) -> None:
    assert Target.parse("cuda:sm_90a").runs_here()
    assert emulated_gpu.arch == "sm_90a"
    for arch in ("sm_80", "sm_89"):
        with pytest.raises(TargetError, match=f"it is {arch}, emulated sm_90 is sm_90a"):
            LocalRunner(Target.parse(f"cuda:{arch}"))


def test_a_device_that_is_gone_ends_the_run(
    emulated_gpu: Target, faulty_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver vanishes after the start: no candidate is blamed for it."""
    monkeypatch.setattr(supervisor, "START_PAUSES", ())
    with LocalRunner(emulated_gpu, template_modules=(faulty_module,)) as runner:
        monkeypatch.setenv("LD_LIBRARY_PATH", "")
        with pytest.raises(MeasureError, match=r"nothing can be measured: .*no NVIDIA driver"):
            list(runner.run([faulty(emulated_gpu, "none")]))
