"""`wattune evaluate-model` and the report's accuracy, on the made-up template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cost_models.made_up import LARGE, SMALL, lone_world

from wattune.compiler import cli
from wattune.compiler.accuracy import judge, read_evidence
from wattune.compiler.database import Database
from wattune.compiler.report import render
from wattune.compiler.report_data import collect, with_accuracy
from wattune.cost_models.evaluate import mean_accuracy


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a database of two shapes, one of them with energy and failures."""
    world, path = lone_world(monkeypatch), tmp_path / "tuned.sqlite"
    with Database(path) as db:
        for record in world.records(110, SMALL, energy=True, failing=True):
            db.add(record)
        for record in world.records(60, LARGE):
            db.add(record)
    return path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_a_database_says_how_good_its_model_is(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate-model", str(database), "--train", "48", "--seeds", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    small, large = found["problems"]
    assert (small["splits"], small["trained"], large["held_out"]) == (2, 48, 12)
    assert small["problem"] == SMALL.to_json()
    assert 0.8 < small["pairwise"] <= 1 and 0 < small["within_1"] < 1
    assert small["energy_skill"] is not None and large["energy_skill"] is None
    assert run("evaluate-model", str(database), "--train", "16", "--seeds", "1") == 0
    assert "pairs right" in capsys.readouterr().out


def test_models_and_transfer_are_compared(database: Path) -> None:
    evidence = read_evidence([database])

    def pairwise(**options: bool | int | str) -> float:
        found = mean_accuracy(judge(evidence, seeds=2, **options))["pairwise"]  # type: ignore[arg-type]
        assert found is not None
        return found

    cold = pairwise(train=16)
    assert pairwise(train=16, transfer=True) > cold + 0.05
    assert abs(pairwise(train=16, model="random") - 0.5) < 0.15


def test_too_few_candidates_are_an_error(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate-model", str(database), "--train", "500") != 0
    assert "no problem has 500 candidates to train on" in capsys.readouterr().err
    assert run("evaluate-model", str(database.with_name("none.sqlite"))) != 0
    assert read_evidence([database], "hot").records == []


def test_the_report_shows_what_a_fresh_model_knows(database: Path) -> None:
    with Database(database, create=False, read_only=True) as db:
        report = with_accuracy(collect(db.records()), db)
    assert [(trial.problem, trial.trained) for trial in report.accuracy][1] == (LARGE, 30)
    page = render(report)
    assert "Predicted against measured latency, held out" in page
    assert "pairs right" in page
    assert len(report.to_json()["accuracy"]) == 2
    without = render(collect(report.problems[0].records[:5]))
    assert "Too few candidates were measured to train a model" in without
