"""Tuning end to end under a fake runner: budgets, resuming, failures, confirmation, layouts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, smooth
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.database import Database
from wattune.compiler.measure.confirm import is_confirmation
from wattune.compiler.search.events import (
    BestImproved,
    Event,
    PhaseStarted,
    RecordArrived,
    RoundStarted,
)
from wattune.compiler.search.stopping import LEAST_RECORDS
from wattune.compiler.search.strategy import strategy_names
from wattune.compiler.search.task import Task
from wattune.compiler.select import select
from wattune.compiler.tune_report import TuneInterrupted, TuneReport
from wattune.compiler.tuner import tune
from wattune.errors import MeasureError, TargetError, UnknownNameError, WattuneError
from wattune.ops import Problem, TernaryGemm
from wattune.schedules.candidate import Candidate, Measurement, Record
from wattune.schedules.template import layout_of

pytestmark = pytest.mark.usefixtures("fake_templates")
MANY, OTHER = TernaryGemm(128, 64, 64), TernaryGemm(1, 128, 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned.sqlite"


def run(
    path: Path, problems: Sequence[Problem] = (SMALL,), trials: int = 40, **more: Any
) -> TuneReport:
    """Tune with the fast strategy unless told, on a fake runner unless told."""
    options = {"strategy": "plain_evolutionary", "runner": FakeRunner(), **more}
    return tune(problems, TARGET, path, trials, **options)


def distinct(path: Path, *problems: Problem) -> int:
    with Database(path, create=False) as database:
        return sum(database.trials(problem) for problem in problems)


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_tunes_within_its_trials_and_beats_the_default(
    path: Path, name: str
) -> None:
    runner = FakeRunner()
    report = run(path, trials=40, strategy=name, runner=runner)
    [part] = report.problems
    assert report.trials == part.trials == distinct(path, SMALL) == len(set(runner.asked)) == 40
    assert part.default and part.default.candidate == Task(SMALL, TARGET).defaults()[0]
    assert part.selected and part.speedup and part.speedup > 1.1
    assert select([SMALL], TARGET, path)[SMALL].candidate == part.selected.candidate
    assert report.stopped == "trials" and report.candidates_per_second > 0
    assert json.loads(json.dumps(report.to_json()))["problems"][0]["trials"] == 40


@pytest.mark.parametrize("name", ["evolutionary", "bayesian"])
def test_a_tune_ends_when_what_is_left_to_win_is_less_than_the_noise(path: Path, name: str) -> None:
    report = run(path, trials=480, strategy=name)
    [part] = report.problems
    assert report.stopped == "settled" and LEAST_RECORDS <= report.trials < 400
    assert part.selected and part.selected.latency == pytest.approx(1e-3)


def test_the_report_adds_up(path: Path) -> None:
    report = run(
        path, [SMALL, OTHER], 60, multiplicity={SMALL: 30, OTHER: 2}, strategy="evolutionary"
    )
    parts = {part.problem: part for part in report.problems}
    assert [part.problem for part in report.problems] == [SMALL, OTHER]

    def whole(which: str) -> float:
        seconds = [p.multiplicity * getattr(p, which).latency for p in parts.values()]
        return 1e3 * float(sum(seconds))

    assert report.ms_per_token.default == pytest.approx(whole("default"))
    assert report.ms_per_token.measured == pytest.approx(whole("selected"))
    assert report.ms_per_token.predicted == pytest.approx(whole("selected"), rel=0.5)
    assert parts[SMALL].trials > parts[OTHER].trials, "most of the model's time is there"
    for part in parts.values():
        trials, seconds = zip(*part.curve, strict=True)
        assert part.selected and part.best and part.default
        assert list(trials) == sorted(trials) and trials[-1] == part.trials
        assert seconds[0] == part.default.latency and seconds[-1] == part.best.latency
    # The first batch is predicted by the prior alone; later ones by what was learnt.
    late = np.array(parts[SMALL].predictions[16:])
    assert np.abs(np.log(late[:, 0] / late[:, 1])).mean() < 0.3


def test_buckets_weigh_by_their_share_of_the_steps(path: Path) -> None:
    report = run(path, [SMALL, MANY], 40, weights={SMALL: 0.9, MANY: 0.1})
    one, many = report.problems
    assert one.selected and many.selected
    step = 0.9 * one.selected.latency + 0.1 * many.selected.latency
    assert report.ms_per_token.measured == pytest.approx(1e3 * step / (0.9 * 1 + 0.1 * 128))


# --- resuming and interruption -------------------------------------------------------------------


def test_resumed_trials_count_and_nothing_is_measured_twice(path: Path) -> None:
    first = FakeRunner()
    run(path, trials=20, strategy="evolutionary", runner=first)
    second = FakeRunner()
    report = run(path, trials=50, strategy="evolutionary", runner=second)
    assert (report.trials, report.resumed) == (50, 20)
    with Database(path) as database:
        trials = [r.candidate for r in database.records() if not is_confirmation(r)]
    assert len(trials) == len(set(trials)) == 50
    third = FakeRunner()
    again = run(path, trials=50, strategy="evolutionary", runner=third)
    assert third.asked == [] and again.resumed == 50
    assert again.problems[0].selected == report.problems[0].selected


def test_a_resumed_search_goes_on_as_if_it_had_not_been_stopped(path: Path, tmp_path: Path) -> None:
    def trials(where: Path) -> list[Candidate]:
        with Database(where) as database:
            return [r.candidate for r in database.records() if not is_confirmation(r)]

    # Rounds of the same size in both: the number of trials decides it.
    whole = tmp_path / "whole.sqlite"
    run(whole, trials=24, strategy="evolutionary")

    def stop(event: Event) -> None:
        if isinstance(event, RoundStarted) and len(trials(path)) == 14:
            raise KeyboardInterrupt

    with pytest.raises(TuneInterrupted):
        run(path, trials=24, strategy="evolutionary", progress=stop)
    assert len(trials(path)) == 14
    run(path, trials=24, strategy="evolutionary")
    assert trials(path) == trials(whole)


class Interrupting(FakeRunner):
    """Is hit by Ctrl-C in the middle of its second batch."""

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        for record in super().run(candidates):
            if len(self.asked) == 15:
                raise KeyboardInterrupt
            yield record


def test_ctrl_c_keeps_everything_and_reports(path: Path) -> None:
    with pytest.raises(TuneInterrupted) as caught:
        run(path, runner=Interrupting())
    report = caught.value.report
    assert isinstance(caught.value, KeyboardInterrupt)
    assert report.stopped == "interrupted" and report.trials == distinct(path, SMALL) == 14
    assert report.problems[0].selected is not None
    assert run(path).resumed == 14


_TUNE = """
import sys, time
from tests.compiler import fakes
from wattune.schedules import template
from wattune.compiler.tuner import tune

class Slow(fakes.FakeRunner):
    def run(self, candidates):
        for record in super().run(candidates):
            yield record
            print("kept", flush=True)
            time.sleep(0.01)

template._MODULES["cpu"] = ("tests.compiler.fakes",)
tune([fakes.SMALL], fakes.TARGET, sys.argv[1], 400, runner=Slow())
"""


def test_kill_9_in_the_middle_loses_no_record(path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _TUNE, str(path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={"PYTHONPATH": f"{root / 'src'}:{root}"},
    )
    assert process.stdout is not None
    kept = [process.stdout.readline() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    kept += process.stdout.readlines()
    process.wait()
    found = distinct(path, SMALL)
    assert found >= len(kept) >= 30
    report = run(path, trials=found + 20)
    assert (report.resumed, report.trials) == (found, found + 20)


def test_minutes_end_a_tune(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow(FakeRunner):
        def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
            for record in super().run(candidates):
                now[0] += 1.0
                yield record

    report = run(path, trials=400, minutes=1.0, runner=Slow())
    assert report.stopped == "minutes" and 45 <= report.trials <= 50
    with Database(path) as database:
        confirmed = [record for record in database.records() if is_confirmation(record)]
    assert len(confirmed) >= 2 and now[0] <= 75


# --- failures ------------------------------------------------------------------------------------


def test_failures_are_kept_counted_and_never_selected(path: Path) -> None:
    report = run(
        path,
        trials=60,
        strategy="evolutionary",
        runner=FakeRunner(
            failure=lambda c: "timeout" if c.schedule.values["groups"] == 8 else None
        ),
    )
    [part] = report.problems
    with Database(path) as database:
        assert part.failures == {"timeout": len(database.records(SMALL, valid=False))}
    assert part.selected and part.selected.candidate.schedule.values["groups"] != 8
    assert part.trials == 60 and report.failures == part.failures


def test_a_tune_in_which_nothing_works_ends_with_the_reason(path: Path) -> None:
    def fails(candidate: Candidate) -> Any:
        return "crash" if candidate.schedule.values["unroll"] == 1 else "build_error"

    with pytest.raises(MeasureError, match=r"all 20 candidates failed .*: it broke") as caught:
        run(path, trials=20, runner=FakeRunner(failure=fails))
    assert caught.value.kind == "build_error" and distinct(path, SMALL) == 20


def test_a_default_that_fails_does_not_end_the_tune(path: Path) -> None:
    default = Task(SMALL, TARGET).defaults()[0]
    runner = FakeRunner(failure=lambda c: "crash" if c == default else None)
    [part] = run(path, runner=runner).problems
    assert part.default is None and part.selected is not None and part.speedup is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "annealing"}, "unknown strategy 'annealing'"),
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"mode": "warm"}, "unknown measuring mode 'warm'"),
        ({"trials": 0}, "trials is 0; allowed: an integer >= 1"),
        ({"minutes": -1}, "minutes is -1; allowed: a number > 0"),
        ({"problems": []}, "no problems"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(
    path: Path, options: dict[str, Any], message: str
) -> None:
    runner = FakeRunner()
    with pytest.raises(WattuneError, match=message):
        run(path, **{"runner": runner, **options})
    assert runner.asked == [] and not path.exists()
    if "strategy" in options:
        with pytest.raises(UnknownNameError):
            run(path, **options)


def test_energy_needs_a_meter(path: Path) -> None:
    with pytest.raises(TargetError, match="'energy@5%' needs measured energy: this machine has no"):
        run(path, objective="energy@5%")
    assert not path.exists()
    run(path, trials=10)
    report = run(path, objective="energy", runner=FakeRunner(joules=lambda c: 1e-3 / smooth(c)))
    [part] = report.problems
    assert part.selected and part.default
    assert part.selected.joules and part.default.joules
    assert part.selected.joules < part.default.joules
    assert part.selected.latency > part.default.latency


# --- confirmation and layouts --------------------------------------------------------------------


@dataclass
class Lucky(FakeRunner):
    """Candidates with unroll 8 look three times as fast as they are when measured alone."""

    interleavings: list[list[Candidate]] = field(default_factory=list)

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        for record in super().run(candidates):
            luck = 1 / 3 if record.candidate.schedule.values["unroll"] == 8 else 1.0
            yield replace(record, measurement=Measurement((record.latency * luck,)))

    def interleaved(
        self, candidates: Sequence[Candidate], rounds: int = 5, energy: bool = False
    ) -> list[Record]:
        self.interleavings.append(list(candidates))
        return [self.record(candidate) for candidate in candidates]


def test_winners_are_confirmed_beside_the_default_and_luck_does_not_last(path: Path) -> None:
    runner = Lucky()
    # Truth: everything but the default is slower than it.
    default = Task(SMALL, TARGET).defaults()[0]
    runner.latency = lambda c: 1e-3 if c == default else 1.5e-3
    [part] = run(path, runner=runner).problems
    [finalists] = runner.interleavings
    assert finalists[0] == default and len(finalists) == 4
    assert part.selected and part.selected.candidate == default and part.speedup == 1.0
    assert min(seconds for _, seconds in part.curve) == pytest.approx(0.5e-3)
    assert select([SMALL], TARGET, path)[SMALL].candidate == default
    run(path, runner=runner)
    assert len(runner.interleavings) == 1, "nothing new was measured"


def clashing(candidate: Candidate) -> float:
    """One token likes groups 1, many like groups 8, and both can live with 2."""
    groups = candidate.schedule.values["groups"]
    table = {1: {1: 1.0, 2: 1.05, 4: 1.6, 8: 2.0}, 128: {1: 3.0, 2: 1.1, 4: 1.8, 8: 1.0}}
    tokens = candidate.problem.sizes["tokens"]
    return smooth(replace_groups(candidate)) * table[tokens][int(groups)]


def replace_groups(candidate: Candidate) -> Candidate:
    schedule = candidate.schedule
    values = {**schedule.values, "groups": 8}
    return replace(candidate, schedule=type(schedule).make(schedule.template, values))


def test_a_group_agrees_on_a_layout_that_all_members_were_measured_in(path: Path) -> None:
    runner, phases = FakeRunner(latency=clashing), []

    def watch(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            phases.append(event.phase)

    report = run(
        path,
        [SMALL, MANY],
        120,
        runner=runner,
        progress=watch,
        weights={SMALL: 0.5, MANY: 0.5},
        strategy="evolutionary",
    )
    one, many = report.problems
    assert one.layout == many.layout and "groups=2" in one.layout
    assert one.selected and many.selected
    assert clashing(one.selected.candidate) < 1.1 * clashing(Task(SMALL, TARGET).defaults()[0])
    assert phases == ["search", "layouts", "search", "confirm"] or phases == [
        "search",
        "layouts",
        "confirm",
    ]
    assert report.trials == distinct(path, SMALL, MANY) <= 120
    with Database(path) as database:
        for problem in (SMALL, MANY):
            inside = {r.candidate for r in database.records(problem) if r.valid}
            assert sum(str(layout_of(c)) == one.layout for c in inside) >= 6


def test_a_member_without_weight_follows_and_is_tuned_in_the_layout_of_the_others(
    path: Path,
) -> None:
    runner = FakeRunner(latency=clashing)
    report = run(path, [SMALL, MANY], 120, runner=runner, strategy="evolutionary")
    one, many = report.problems
    assert many.weight == 0 and "groups=1" in one.layout and many.layout == one.layout
    for part in (one, many):
        assert part.selected and part.best
        layout = layout_of(part.selected.candidate)
        least = min(clashing(c) for c in Task(part.problem, TARGET, layout).enumerate())
        assert part.selected.latency <= 1.1 * least
    assert many.trials >= 40


# --- progress ------------------------------------------------------------------------------------


def test_progress_tells_every_record_and_every_improvement(path: Path) -> None:
    events: list[Event] = []
    report = run(path, progress=events.append)
    arrived = [event for event in events if isinstance(event, RecordArrived)]
    assert [event.trials for event in arrived] == list(range(1, 41))
    assert {event.total for event in arrived} == {40}
    assert sum(e.candidates for e in events if isinstance(e, RoundStarted)) == 40
    improved = [event for event in events if isinstance(event, BestImproved)]
    assert improved[0].previous is None
    seconds = [event.record.latency for event in improved]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == report.problems[0].curve[-1][1]


@dataclass
class Busy(FakeRunner):
    """Every third candidate is disturbed when it is measured for the first time."""

    seen: set[Candidate] = field(default_factory=set)

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        for record in super().run(candidates):
            new = record.candidate not in self.seen
            self.seen.add(record.candidate)
            disturbed = new and len(self.seen) % 3 == 1
            seconds = record.latency * (1000 if disturbed else 1)
            yield replace(record, measurement=Measurement((seconds,)))


def test_a_disturbed_measurement_is_repeated_and_is_still_one_trial(path: Path) -> None:
    runner = Busy()
    report = run(path, trials=30, runner=runner, strategy="evolutionary")
    [part] = report.problems
    assert part.trials == distinct(path, SMALL) == 30 < len(runner.asked)
    assert max(measured for _, measured in part.predictions) < 0.1
    assert part.default and part.curve[0] == (1, part.default.latency)
    assert len(part.predictions) == 30
    with Database(path) as database:
        assert sum(record.latency > 0.1 for record in database.records()) == 10
