"""The runner: every candidate becomes one record, whatever it does to its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wattune.compiler.measure.runner import LocalRunner
from wattune.errors import TargetError, UnknownNameError
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

HERE = Path(__file__).parent
PROBLEM = TernaryGemm(4, 37, 129, dtype="int8")
TARGET = Target.native(1)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRunner]:
    monkeypatch.syspath_prepend(str(HERE))
    made = LocalRunner(
        TARGET, "hot", build_timeout=5, run_timeout=3, template_modules=("faulty_templates",)
    )
    with made:
        yield made


def faulty(fault: str, repeat: int = 1) -> Candidate:
    schedule = Schedule.make("faulty", {"fault": fault, "repeat": repeat})
    return Candidate(PROBLEM, TARGET, schedule)


def records_of(runner: LocalRunner, faults: list[str]) -> dict[str, Record]:
    candidates = [faulty(fault) for fault in faults]
    records = list(runner.run(candidates))
    assert sorted(r.candidate.key for r in records) == sorted(c.key for c in candidates)
    return {str(r.candidate.schedule.values["fault"]): r for r in records}


def test_crash_hang_and_wrong_results_are_recorded_and_the_run_goes_on(
    runner: LocalRunner,
) -> None:
    expected = {
        "crash": ("crash", "SIGSEGV"),
        "hang": ("timeout", "within 3 s"),
        "wrong": ("wrong_result", "y[0, 5] is"),
        "unwritten": ("wrong_result", "y[0, 36] is"),
        "overrun": ("wrong_result", "y is overrun"),
        "overread": ("crash", "SIGSEGV"),
        "overwrite": ("wrong_result", "weight was overwritten"),
        "refuse": ("wrong_result", "answered with an error"),
    }
    records = records_of(runner, [*expected, "none"])
    for fault, (kind, message) in expected.items():
        assert records[fault].failure == kind, fault
        assert message in records[fault].message, fault
        assert records[fault].measurement is None
    assert records["none"].valid


def test_build_failures_are_recorded_and_the_run_goes_on(runner: LocalRunner) -> None:
    expected = {
        "lower_raises": ("build_error", "a bug in a template"),
        "lower_hangs": ("timeout", "within 5 s"),
        "compiler_dies": ("build_error", "SIGABRT"),
        "undefined_symbol": ("build_error", "no_such_function"),
    }
    records = records_of(runner, [*expected, "none"])
    for fault, (kind, message) in expected.items():
        assert records[fault].failure == kind, fault
        assert message in records[fault].message, fault
    assert records["none"].valid


def test_a_record_says_where_it_comes_from(runner: LocalRunner) -> None:
    (record,) = runner.run([faulty("none")])
    assert record.conditions.mode == "hot"
    assert record.conditions.threads == 1
    assert record.provenance.source_hash == template_of(record.candidate).source_hash()
    assert record.provenance.fingerprint == fingerprint(TARGET)
    assert record.provenance.versions["apache-tvm"] != "none"
    assert abs(record.provenance.created - time.time()) < 60
    assert record.measurement is not None
    assert record.measurement.joules is None or record.measurement.energy_source != "none"
    assert {"compile_seconds", "code_bytes", "verify_seconds"} <= set(record.facts)


def test_timing_sees_the_time_that_passes(runner: LocalRunner) -> None:
    """A kernel that sleeps for 2 ms takes 2 ms; it is cut short beside a fast one."""
    records = records_of(runner, ["none", "slow"])
    assert records["none"].latency < 1e-4
    assert 2e-3 <= records["slow"].latency < 2e-2
    slow = records["slow"].measurement
    assert slow is not None
    assert len(slow.seconds) < 10


def test_interleaved_rounds_keep_the_order_and_join_the_runs(runner: LocalRunner) -> None:
    candidates = [faulty("slow"), faulty("wrong"), faulty("none"), faulty("slow")]
    records = runner.interleaved(candidates, rounds=2)
    assert [r.candidate for r in records] == candidates
    assert [r.failure for r in records] == [None, "wrong_result", None, None]
    slow, fast = records[0].measurement, records[2].measurement
    assert slow is not None
    assert fast is not None
    assert len(fast.seconds) > 31, "the runs of both rounds"
    assert fast.latency < slow.latency


def test_an_abandoned_run_leaves_the_runner_usable(runner: LocalRunner) -> None:
    for record in runner.run([faulty("none", repeat) for repeat in (1, 2, 3)]):
        assert record.valid
        break
    assert len(list(runner.run([faulty("none")]))) == 1


@pytest.mark.measure
@pytest.mark.parametrize("mode", ["cold", "hot"])
def test_all_cores_and_both_modes_measure_real_templates(mode: str) -> None:
    target = Target.native()
    candidate = default_candidate(TernaryGemm(3, 80, 200), target)
    with LocalRunner(target, mode) as runner:
        (record,) = runner.run([candidate])
    assert record.valid, record.message
    assert record.conditions.threads == target.threads


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'warm'.*cold, hot"):
        LocalRunner(TARGET, "warm")
    other = Target.native(1).with_threads(Target.native().cores)
    if other != TARGET:
        with LocalRunner(other, "hot") as runner, pytest.raises(TargetError, match="another"):
            list(runner.run([faulty("none")]))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(sent: signal.Signals, tmp_path: Path) -> None:
    """Kill -9 and Ctrl-C in the middle of a hung kernel: no process stays, nothing is printed."""
    code = (
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from wattune.compiler.measure.runner import LocalRunner\n"
        "from wattune.ops import TernaryGemm\n"
        "from wattune.schedules.candidate import Candidate, Schedule\n"
        "from wattune.schedules.target import Target\n"
        "target = Target.native(1)\n"
        "schedule = Schedule.make('faulty', {'fault': 'hang', 'repeat': 1})\n"
        "candidate = Candidate(TernaryGemm(4, 37, 129, dtype='int8'), target, schedule)\n"
        "try:\n"
        "    with LocalRunner(target, 'hot', template_modules=('faulty_templates',)) as runner:\n"
        "        list(runner.run([candidate]))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not _measuring(children := _children(parent.pid)):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(parent.pid, sent)
    assert parent.wait(10) == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert parent.stderr is not None
    assert parent.stderr.read() == ""
    assert not list(tmp_path.iterdir()), "what was built stays behind"


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _measuring(children: list[int]) -> bool:
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    return any(b"measure.worker" in command for command in commands)
