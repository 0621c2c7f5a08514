"""Exploring cache layouts: what moves together, what is compared, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.compiler.fakes import TARGET, FakeRunner, FakeTemplate

from wattune.compiler import cli
from wattune.compiler.cache_layouts import Comparison, choices, compare
from wattune.compiler.cli.tune import _verdict
from wattune.compiler.tuner import tune
from wattune.errors import ProblemError
from wattune.ops import (
    DecodeAttention,
    KVCacheAppend,
    Problem,
    QuantizedDecodeAttention,
    TernaryGemm,
)
from wattune.ops.kv_cache import LAYOUTS
from wattune.schedules import template as registry
from wattune.schedules.candidate import Candidate
from wattune.schedules.template import Counts


class AttentionTemplate(FakeTemplate):
    def __init__(self, operator: str) -> None:
        super().__init__(f"fake_{operator}")
        self.operator = operator  # type: ignore[misc]

    def counts(self, problem: Any, target: Any, values: Any) -> Counts:
        return Counts({"memory": 1e6}, {})


TEMPLATES = tuple(
    AttentionTemplate(name) for name in ("decode_attention", "kv_cache_append", "ternary_gemm")
)

ATTEND = DecodeAttention(1, 512, 8, 8, 64)
WINDOW = DecodeAttention(1, 512, 8, 4, 64, window=128)
APPEND = KVCacheAppend(1, 512, 8, 64)
LINEAR = TernaryGemm(1, 64, 64)
LAYERS = {ATTEND: 2, APPEND: 2, WINDOW: 6, LINEAR: 4}


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry._MODULES, "cpu", (__name__,))
    registry._templates.cache_clear()
    yield
    registry._templates.cache_clear()


def nhd(problem: Any) -> Problem:
    changed: Problem = replace(problem, layout="NHD")
    return changed


def latency(candidate: Candidate) -> float:
    """Return milliseconds that know the layout: attention likes HND, the others NHD."""
    problem: Any = candidate.problem
    if problem == LINEAR:
        return 5e-3
    slow = (problem.layout == "HND") != isinstance(problem, DecodeAttention)
    seconds: dict[Problem, float] = {ATTEND: 4e-3, WINDOW: 1e-3, APPEND: 1e-3}
    return seconds[replace(problem, layout="HND")] * float(1 + slow)


def test_problems_of_a_cache_move_together() -> None:
    found = choices(list(LAYERS))
    assert [cache["NHD"] for cache in found.caches] == [(nhd(ATTEND), nhd(APPEND)), (nhd(WINDOW),)]
    assert found.fixed == (LINEAR,)
    assert found.of("NHD") == [nhd(ATTEND), nhd(APPEND), nhd(WINDOW), LINEAR]
    assert len(found.problems) == len(set(found.problems)) == 7
    # It does not matter in which layout the model was given.
    moved = choices([nhd(p) if p != LINEAR else p for p in LAYERS])
    assert moved == found
    layers = found.spread(LAYERS)
    assert (layers[nhd(WINDOW)], layers[WINDOW], layers[LINEAR]) == (6, 6, 4)


def test_what_refuses_a_layout_stays() -> None:
    quantized = QuantizedDecodeAttention(1, 512, 8, 8, 64)
    assert choices([quantized, ATTEND]).fixed == (quantized,)
    with pytest.raises(ProblemError, match="HND, NHD"):
        choices([quantized, LINEAR])


@pytest.mark.usefixtures("templates")
def test_the_layouts_are_compared_by_the_time_of_a_token(tmp_path: Path) -> None:
    found = choices(list(LAYERS))
    runner = FakeRunner(latency)
    report = tune(
        found.problems,
        TARGET,
        tmp_path / "tuned.sqlite",
        40,
        strategy="random",
        runner=runner,
        multiplicity=found.spread(LAYERS),
    )
    comparison = compare(found, report)
    hnd, other = 2 * 4 + 6 * 1 + 2 * 2, 2 * 8 + 6 * 2 + 2 * 1
    assert comparison.milliseconds == pytest.approx({"HND": hnd, "NHD": other})
    assert comparison.fastest == "HND"
    assert comparison.speedup == pytest.approx(other / hnd)
    # The linear layers are part of the model, once.
    assert comparison.report.ms_per_token.measured == pytest.approx(hnd + 4 * 5)
    data = json.loads(json.dumps(comparison.to_json()))
    assert data["caches"][1]["ms_per_token"] == pytest.approx({"HND": 6, "NHD": 12})
    assert len(data["problems"]["NHD"]) == 4


@pytest.mark.usefixtures("templates")
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    faked = partial(tune, runner=FakeRunner(latency))
    monkeypatch.setattr("wattune.compiler.tuner.tune", faked)
    words = [word for p in LAYERS for word in ("--problem", json.dumps(p.to_json()))]
    words += ["--threads", "1", "--trials", "30", "--strategy", "random", "--explore-layout"]
    words += ["--db", str(tmp_path / "tuned.sqlite"), *(["--json"] if as_json else [])]
    assert cli.main(["tune", *words]) == 0
    out = capsys.readouterr().out
    # Each problem once: 4 + 1 + 2 milliseconds in HND, 8 + 2 + 1 in NHD.
    if as_json:
        data = json.loads(out)
        assert data["layouts"]["fastest"] == "HND"
        assert data["layouts"]["speedup"] == pytest.approx(11 / 7)
        assert len(data["problems"]) == 4
    else:
        assert "layout HND is faster for this model, 1.57x" in out
        assert "milliseconds per token over all layers: 12 " in out
        assert out.count("decode_attention") == 8, "both layouts, with their templates"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({"HND": 1.0, "NHD": 1.01}, "layouts HND, NHD are equally fast"),
        ({"HND": 1.2, "NHD": 1.0}, "layout NHD is faster for this model, 1.2x"),
        ({"HND": None, "NHD": 1.0}, "no figure for caches in layout HND"),
    ],
)
def test_the_verdict(seconds: dict[str, float | None], words: str) -> None:
    found = choices([ATTEND])
    reports = {
        name: SimpleNamespace(of=lambda _, name=name: cost(seconds[name])) for name in LAYOUTS
    }
    assert _verdict(Comparison(found, reports)).startswith(words)  # type: ignore[arg-type]


def cost(seconds: float | None) -> SimpleNamespace:
    return SimpleNamespace(ms_per_token=SimpleNamespace(measured=seconds))
