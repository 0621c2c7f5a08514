"""The command line: names, exit codes, messages, JSON. What commands do is tested elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wattune.compiler import cli
from wattune.compiler.database import Database
from wattune.ops import TernaryGemm, operator_names
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    Measurement,
    Provenance,
    Record,
    Schedule,
)
from wattune.schedules.target import Target

COMMANDS = [
    *("ops", "tune", "compile", "bench", "report", "inspect", "replay", "pack"),
    *("model-cost", "evaluate-model", "export-records", "import-records", "bundle"),
]


def record(number: int) -> Record:
    problem = TernaryGemm(1, 64, 128)
    schedule = Schedule.make("vnni_i2", {"groups": number})
    return Record(
        Candidate(problem, Target.parse("cpu:vnni"), schedule),
        Conditions(),
        Provenance("hash", "machine", created=float(number)),
        Measurement((1e-6 * number,)),
    )


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.sqlite"
    with Database(path) as db:
        for number in (1, 2, 3):
            db.add(record(number))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    listed = out[out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed if line[2:3].strip()] == COMMANDS


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["compile", "-o", "k.so"], "--model"),
        (["compile", "-o", "k.so", "--problem", '{"operator": "gemm"}'], "ternary_gemm"),
        (["compile", "-o", "k.so", "--problem", "{"], "not JSON"),
        (["compile", "-o", "k.so", "--problem", "missing.json"], "neither JSON nor a file"),
        (["compile", "-o", "k.so", "--model", "missing.json"], "cannot be read"),
        (["ops", "--target", "tpu"], "native"),
        (["ops", "--threads", "100000"], "threads is 100000"),
        (["report", "--db", "missing.sqlite"], "missing.sqlite does not exist"),
        (["export-records", "--db", "missing.sqlite"], "missing.sqlite does not exist"),
        (["inspect", "missing.so"], "missing.so"),
        (["inspect", __file__], "a library"),
        (["tune", "--objective", "speed"], ""),
        (["frobnicate"], "frobnicate"),
        (["ops", "--no-such-option"], "--no-such-option"),
    ],
)
def test_user_errors_exit_2_with_a_message(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert status == 2
    assert out == ""
    assert part in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "a failed command leaves no file"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "--debug", "ops", "--target", "tpu")
    assert status == 2
    assert "Traceback" in err


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wattune.compiler.cli.ops._describe", interrupt)
    status, _, err = run(capsys, "ops")
    assert status == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_ops_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "ops", "--json", "--target", "cpu:vnni")
    found = {op["name"]: op for op in json.loads(out)["operators"]}
    assert status == 0
    assert tuple(found) == operator_names()
    op = found["ternary_gemm"]
    assert op["formats"]["t5"] == 1.6
    assert any(template["name"] == "vnni_i2" for template in op["templates"])


def test_ops_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattune.compiler.cli.output.PIPE_WIDTH", 60)
    status, out, _ = run(capsys, "ops", "--target", "cpu:vnni")
    lines = out.splitlines()
    assert status == 0
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if line[:1].strip()] == list(operator_names())
    assert "    serve 1x2560x6912; 128x2560x6912" in lines


def test_records_go_out_and_come_in(
    capsys: pytest.CaptureFixture[str], database: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "records.jsonl"
    assert run(capsys, "export-records", "--db", database, "-o", lines)[0] == 0
    assert run(capsys, "export-records", "--db", database)[1] == lines.read_text()
    other = tmp_path / "other.sqlite"
    status, out, _ = run(capsys, "import-records", lines, lines, "--db", other, "--json")
    assert status == 0
    assert json.loads(out) == {"added": 3, "skipped": 3, "refused": []}


def test_a_wrong_line_is_named_and_nothing_is_imported(
    capsys: pytest.CaptureFixture[str], database: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "records.jsonl"
    run(capsys, "export-records", "--db", database, "-o", lines)
    good = lines.read_text().splitlines()
    lines.write_text("\n".join([good[0], '{"half": ', good[1]]))
    other = tmp_path / "other.sqlite"
    status, _, err = run(capsys, "import-records", lines, "--db", other)
    assert status == 2
    assert "records.jsonl: line 2" in err
    with Database(other) as db:
        assert len(db) == 0
    status, out, _ = run(capsys, "import-records", lines, "--db", other, "--skip-bad", "--json")
    assert status == 0
    answer: dict[str, Any] = json.loads(out)
    assert (answer["added"], len(answer["refused"])) == (2, 1)


def test_inspect_a_database(capsys: pytest.CaptureFixture[str], database: Path) -> None:
    status, out, _ = run(capsys, "inspect", database, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["kind"], found["records"]) == ("database", 3)
    assert found["problems"][0]["best_seconds"] == 1e-6
    assert "ternary_gemm 1x64x128" in run(capsys, "inspect", database)[1]


def test_a_reader_that_leaves_is_no_error(database: Path) -> None:
    command = f"{sys.executable} -m wattune.compiler.cli export-records --db {database} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_model_cost(capsys: pytest.CaptureFixture[str]) -> None:
    examples = Path(__file__).parents[2] / "examples"
    words = ("model-cost", examples / "mimo-v2-flash.json", "--tokens", "8,1", "--gbps", 40)
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "47 layers of 256 experts, 8 a token" in out
    assert ["8", "57.4", "1.11", "2.89", "136", "3396", "424.5"] in map(str.split, out.splitlines())
    status, out, _ = run(capsys, *words, "--skew", 1, "--experts", "int4", "--json")
    data = json.loads(out)
    [one, eight] = data["layers"][0]["steps"]
    assert (one["tokens"], eight["tokens"]) == (1, 8)
    assert one["distinct_experts"] == pytest.approx(8)
    assert eight["distinct_experts"] < 50
    assert eight["least_ms"] == pytest.approx(eight["step_bytes"] / 40e6)
    status, _, err = run(capsys, "model-cost", examples / "llama-3.1-8b.json")
    assert status == 2
    assert "no mixture-of-experts layers" in err
