"""Bundles: made here, measured where neither TVM nor a compiler can be found, brought home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from wattune.compiler import cli
from wattune.compiler.bundle import create as create_module
from wattune.compiler.bundle.create import create
from wattune.compiler.bundle.manifest import Manifest
from wattune.compiler.bundle.results import Results
from wattune.compiler.bundle.run import main as run_main
from wattune.compiler.cuda import device_code
from wattune.compiler.database import Database
from wattune.compiler.measure.confirm import is_confirmation
from wattune.compiler.record_formats import record_from_line
from wattune.errors import MissingDependencyError, RecordError, WattuneError
from wattune.ops import DecodeAttention, TernaryGemm
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target
from wattune.schedules.template import _MODULES, _templates, default_candidate, template_of

HERE = Path(__file__).parent
# One template serves it: few builds.
TARGET = replace(Target.native(1), features=())
PROBLEMS = [TernaryGemm(1, 37, 129, dtype="int8"), TernaryGemm(4, 64, 128)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which numpy and ml_dtypes are all that Python and PATH have."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("numpy", "ml_dtypes"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for part in (package, package.with_name(f"{name}.libs")):
            if part.exists():
                (folder / part.name).symlink_to(part)
    return {"PYTHONPATH": str(folder), "PATH": str(folder), "HOME": str(folder)}


def started(bundle: Path, bare: dict[str, str], *words: str) -> subprocess.Popen[str]:
    # -S: nothing of site-packages; what is started in turn inherits the path.
    command = [sys.executable, "-S", str(bundle / "run.py"), *words]
    return subprocess.Popen(
        command, env=bare, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(bundle: Path, bare: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    process = started(bundle, bare, *words)
    out, err = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def records_in(path: Path) -> list[Record]:
    return [record_from_line(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def faulty_module() -> Iterator[str]:
    """Register `faulty_templates`; build workers import it by this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setitem(_MODULES, "cpu", (*_MODULES["cpu"], "faulty_templates"))
        _templates.cache_clear()
        yield "faulty_templates"
    _templates.cache_clear()


@pytest.fixture(scope="module")
def bundle(faulty_module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build two problems' defaults and a sample each, and faults."""
    folder = tmp_path_factory.mktemp("bundle") / "made"
    faults = [
        Candidate(PROBLEMS[0], TARGET, Schedule.make("faulty", {"fault": f, "repeat": 1}))
        for f in ("crash", "wrong", "lower_raises", "slow", "none")
    ]
    create(PROBLEMS, TARGET, folder, 1, mode="hot", extra=faults, template_modules=(faulty_module,))
    return folder


def test_a_bundle_runs_without_tvm_and_its_records_come_home(
    bundle: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "records.jsonl"
    done = run(bundle, bare, "--out", str(out))
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(bundle)
    records = records_in(out)
    assert [r.candidate.key for r in records] != []
    assert {r.candidate for r in records} == {r.candidate for r in manifest.results}
    by_fault = {
        r.candidate.schedule.values["fault"]: r
        for r in records
        if r.candidate.schedule.template == "faulty"
    }
    kinds = {fault: record.failure for fault, record in by_fault.items()}
    assert kinds == {
        "crash": "crash",
        "wrong": "wrong_result",
        "lower_raises": "build_error",
        "slow": None,
        "none": None,
    }
    for record in records:
        assert record.provenance.source_hash == template_of(record.candidate).source_hash()
        assert record.provenance.fingerprint == fingerprint(TARGET), "this machine's own"
        assert record.provenance.versions["apache-tvm"] != "none"
    confirmed = [r for r in records if is_confirmation(r)]
    for problem in PROBLEMS:
        finalists = [r for r in confirmed if r.candidate.problem == problem]
        assert default_candidate(problem, TARGET) in {r.candidate for r in finalists}
        assert len(finalists) > 1
        assert all(r.measurement and len(r.measurement.seconds) > 31 for r in finalists)
    assert [records[i].candidate for i in (0, 1)] == [
        default_candidate(problem, TARGET) for problem in PROBLEMS
    ]
    database = tmp_path / "home.sqlite"
    assert cli.main(["import-records", str(out), "--db", str(database)]) == 0
    with Database(database) as db:
        assert len(db) == len(records)
        assert db.best(PROBLEMS[0], TARGET, fingerprint(TARGET), "hot") is not None
    lines = done.stdout.splitlines()
    assert any(line.startswith("limits of this run: read_gbps") for line in lines)
    assert any(
        "wrong_result: ternary_gemm 1x37x129 int8 int32: y[0, 5] is" in line for line in lines
    )
    machine = json.loads((tmp_path / "records.machine.json").read_text())
    assert machine["fingerprint"] == fingerprint(TARGET)
    assert machine["limits"]["read_gbps"] > 0


def test_a_stopped_run_goes_on_where_it_stopped(
    bundle: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    """Stopped by SIGTERM after a record, then killed in the middle of a line's writing."""
    out = tmp_path / "records.jsonl"
    process = started(bundle, bare, "--out", str(out))
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the same command goes on from here" in err
    first = records_in(out)
    total = len(Manifest.read(bundle).results)
    assert 2 <= len(first) < total
    with out.open("a") as file:
        file.write('{"problem": {"operator": "tern')
    done = run(bundle, bare, "--out", str(out))
    assert done.returncode == 0, done.stderr
    again = records_in(out)
    assert again[: len(first)] == first
    assert len([r for r in again if not is_confirmation(r)]) == total
    assert len({r.candidate for r in again}) == total
    nothing = run(bundle, bare, "--out", str(out), "--minutes", "0.1")
    assert nothing.returncode == 0
    assert records_in(out) == again


def test_time_is_kept_and_problems_are_picked(
    bundle: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "records.jsonl"
    done = run(bundle, bare, "--out", str(out), "--minutes", "0")
    assert "time is up" in done.stdout
    assert out.read_text() == ""
    assert done.returncode == 1, "nothing was measured"
    done = run(bundle, bare, "--out", str(out), "--only", "4x64x128", "--confirm", "0")
    assert done.returncode == 0
    assert {str(r.candidate.problem) for r in records_in(out)} == {"ternary_gemm 4x64x128"}


def test_making_that_was_broken_off_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nvcc nothing is built first, and the folder can be used once there is one."""
    folder = tmp_path / "made"
    problem, target = DecodeAttention(1, 64, 2, 1, 64), Target.parse("cuda:sm_90a")
    missing = MissingDependencyError("nvidia-cuda-nvcc", "compiling for CUDA", "cuda")

    def compile_image(*_: object) -> None:
        raise missing

    monkeypatch.setattr(device_code, "compile_image", compile_image)
    monkeypatch.setattr(create_module, "BuildPool", None)
    for _ in range(2):
        with pytest.raises(MissingDependencyError, match="compiling for CUDA needs nvidia-cuda"):
            create([problem], target, folder, 1)
        assert folder.exists()
    (folder / "mine.txt").touch()
    with pytest.raises(WattuneError, match="holds something else"):
        create([problem], target, folder, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--minutes", "-1"), "argument --minutes: -1 minutes; allowed: a number >= 0"),
        (("--minutes", "nan"), "argument --minutes: nan minutes; allowed: a number >= 0"),
        (("--energy", "-3"), "argument --energy: -3 candidates; allowed: an integer >= 0"),
        (("--confirm", "few"), "argument --confirm: few candidates; allowed: an integer >= 0"),
        (("--only", "no such"), "error: --only 'no such': no problem's name has it; ternary_gemm"),
    ],
)
def test_wrong_arguments_of_a_run(
    bundle: Path,
    tmp_path: Path,
    words: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is started, and no file is left."""
    out = tmp_path / "records.jsonl"
    try:
        status = run_main(bundle, ["--out", str(out), *words])
    except SystemExit as leaving:
        status = int(str(leaving.code))
    assert status == 2 and message in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_is_small_and_says_what_it_needs(bundle: Path) -> None:
    needs = json.loads((bundle / "manifest.json").read_text())["needs"]
    files = [p for p in bundle.rglob("*") if p.is_file()]
    assert needs["packages"] == ["numpy"]
    assert needs["bytes"] <= sum(p.stat().st_size for p in files) < 6 << 20
    assert needs["threads"] == 1
    assert not [p for p in files if p.suffix == ".none"]
    assert not [p for p in files if p.name in ("tuner.py", "build.py", "database.py")]


def test_what_a_machine_lacks_is_said_at_once(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another CPU's bundle, a GPU's without a driver, a package that is missing, a bad manifest."""

    def outcome(change: dict[str, object]) -> str:
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        data = json.loads((bundle / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**data, **change}))
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert run_main(folder, ["--out", str(tmp_path / "out.jsonl")]) == 2
        finally:
            signal.signal(signal.SIGTERM, before)
        return capsys.readouterr().err

    cuda = Target.parse("cuda:sm_90a").to_json()
    assert "cannot run here: no NVIDIA driver" in outcome({"target": cuda})
    arm = {**TARGET.to_json(), "arch": "aarch64", "features": []}
    assert "it is cpu aarch64, this machine is cpu" in outcome({"target": arm})
    assert "needs no_such_package" in outcome({"needs": {"packages": ["no_such_package"]}})
    assert "format is 7; allowed: 1" in outcome({"format": 7})
    assert not (tmp_path / "out.jsonl").exists()


def test_a_folder_or_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(WattuneError, match="holds something else"):
        create(PROBLEMS, TARGET, tmp_path, 0)
    notes = tmp_path / "notes.txt"
    notes.write_text("no record\n")
    with pytest.raises(RecordError, match=r"line 1: not JSON.*; give a new file"):
        Results(notes, "here")
    assert notes.read_text() == "no record\n"


def test_a_gpu_s_bundle_runs_on_the_emulated_driver(
    emulated_gpu: Target,
    bare: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The whole way: created for sm_90a, run with the driver alone, records of that device."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setitem(_MODULES, "cuda", ("faulty_gpu",))
    _templates.cache_clear()
    target = Target.parse("cuda:sm_90a")
    problem = DecodeAttention(2, 21, 4, 2, 32, dtype="float32")
    wrong = Schedule.make("faulty_gpu", {"fault": "wrong", "repeat": 2})
    extra: Sequence[Candidate] = [Candidate(problem, target, wrong)]
    folder, out = tmp_path / "made", tmp_path / "records.jsonl"
    create([problem], target, folder, 0, extra=extra, template_modules=("faulty_gpu",))
    needs = Manifest.read(folder).needs
    assert needs["device"] == "sm_90a"
    assert "580" in needs["driver"]
    environment = {**bare, "LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]}
    done = run(folder, environment, "--out", str(out), "--energy", "1")
    assert done.returncode == 0, done.stderr
    default, failed, again, energy = records_in(out)
    assert is_confirmation(again)
    assert default.valid
    assert default.candidate.target == target
    assert failed.failure == "wrong_result"
    assert energy.candidate == default.candidate
    assert energy.joules is None
    assert "energy is not measured" in energy.message
    assert default.provenance.fingerprint.startswith("emulated-sm-90-")
    assert default.provenance.fingerprint == fingerprint(target)
    assert default.provenance.versions["driver"] == "13.0"
    assert "nvcc" in default.provenance.versions
    machine = json.loads((tmp_path / "records.machine.json").read_text())
    assert machine["gpu"] == {"device": "emulated sm_90", "sms": 132, "driver": "13.0"}
    assert set(machine["limits"]) == {"read_gbps", "copy_gbps"}
    _templates.cache_clear()


def test_the_command_line_makes_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "made")
    words = ["bundle", "create", "--op", "ternary_gemm", "--shapes", "1x16x16", "--samples", "0"]
    assert cli.main([*words, "--threads", "1", "-o", folder, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["candidates"] >= 1
    assert data["failed"] == []
    assert cli.main(["bundle", "create", "-o", folder]) == 2
    assert cli.main(["bundle", "create", "--op", "ternary_gemm", "-o", folder]) == 2
    assert cli.main([*words, "--target", "cuda:sm_99", "-o", folder]) == 2
