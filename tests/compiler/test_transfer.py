"""Records of other tasks: what is made of them, and what a search makes of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, best_of_all, smooth
from tests.compiler.fakes import fake_templates as fake_templates

import wattune as wt
from wattune.compiler.cli import main
from wattune.compiler.replay import Recording, replay
from wattune.compiler.replay.records import from_records
from wattune.compiler.replay.table import write_table
from wattune.compiler.search import transfer as module
from wattune.compiler.search.strategy import strategy
from wattune.compiler.search.task import Task
from wattune.compiler.search.transfer import SLOWEST, nearest, transfer_of
from wattune.compiler.search.warm import LOOK
from wattune.cost_models.base import cost_model
from wattune.errors import WattuneError
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import Candidate, FailureKind, Record

pytestmark = pytest.mark.usefixtures("fake_templates")

OTHER = TernaryGemm(1, 128, 64)
LEARNER = partial(cost_model, "xgboost")


def backwards(candidate: Candidate) -> float:
    """The slowest here is the fastest there."""
    return 1e-6 / smooth(candidate)


def records(
    problem: TernaryGemm = OTHER,
    latency: Callable[[Candidate], float] = smooth,
    failure: Callable[[Candidate], FailureKind | None] = lambda candidate: None,
    every: int = 1,
) -> list[Record]:
    runner = FakeRunner(latency, failure)
    return list(runner.run(list(Task(problem, TARGET).enumerate())[::every]))


def trials_to_optimum(others: list[Record]) -> int:
    """Count the proposals to the best point of `SMALL` of a search that knows these records."""
    task, runner = Task(SMALL, TARGET), FakeRunner()
    known = transfer_of(task, others, LEARNER) if others else None
    found = strategy("bayesian", task, None, 0, transfer=known)
    for count in range(1, task.size() + 1):
        [asked] = found.ask(1)
        if best_of_all(asked):
            return count
        found.tell(list(runner.run([asked])))
    raise AssertionError("the optimum was never proposed")


def test_a_complete_table_says_slowdowns_and_failures_are_as_slow_as_can_be() -> None:
    task = Task(SMALL, TARGET)

    def fails(candidate: Candidate) -> FailureKind | None:
        return "crash" if candidate.schedule.values["stream"] else None

    known = transfer_of(task, records(failure=fails), LEARNER)
    assert known is not None and known.model is None
    points = list(task.enumerate())
    [column] = known.columns(points).T
    for candidate, slowdown in zip(points, column, strict=True):
        expected = min(smooth(candidate) / min(map(smooth, points)), SLOWEST)
        if fails(candidate):
            assert slowdown == pytest.approx(math.log(SLOWEST))
        else:
            assert slowdown == pytest.approx(math.log(expected), abs=0.2)


def test_own_records_are_no_other_tasks() -> None:
    assert transfer_of(Task(SMALL, TARGET), records(SMALL), LEARNER) is None


def test_a_few_records_of_another_shape_train_a_model() -> None:
    task = Task(SMALL, TARGET)
    known = transfer_of(task, records(every=5), LEARNER)
    assert known is not None and known.model is not None and not known.tables
    points = list(task.enumerate())
    [column] = known.columns(points).T
    assert column.max() <= math.log(SLOWEST)
    assert np.corrcoef(column, [math.log(smooth(c)) for c in points])[0, 1] > 0.5
    assert transfer_of(task, records(every=200), LEARNER) is None


def test_the_nearest_records_are_kept_and_evenly_of_those(monkeypatch: pytest.MonkeyPatch) -> None:
    task, ours = Task(SMALL, TARGET), records()
    monkeypatch.setattr(module, "_MOST_RECORDS", 60)
    kept = nearest(task, ours)
    assert len(kept) == 60 == len({r.candidate for r in kept})
    assert {r.candidate.schedule.template for r in kept} == {
        r.candidate.schedule.template for r in ours
    }
    assert nearest(task, ours[:5]) == ours[:5]


def test_what_is_best_elsewhere_is_tried_first_and_the_default_soon() -> None:
    task = Task(SMALL, TARGET)
    assert trials_to_optimum(records()) <= LOOK
    found = strategy("bayesian", task, None, 0, transfer=transfer_of(task, records(), LEARNER))
    first = found.ask(LOOK + len(task.defaults()))
    assert set(task.defaults()) <= set(first)


def test_a_source_that_misleads_is_found_out() -> None:
    alone = trials_to_optimum([])
    assert trials_to_optimum(records(latency=backwards)) <= LOOK + 2 * alone


@pytest.fixture
def recordings() -> tuple[Recording, Recording]:
    return from_records(records(SMALL)), from_records(records(OTHER))


@pytest.mark.parametrize("name", ["bayesian", "evolutionary"])
def test_replay_knows_other_recordings(name: str, recordings: tuple[Recording, Recording]) -> None:
    target, source = recordings
    warm, cold = (replay(target, name, 40, transfer=known) for known in ([source], []))
    needed, alone = (trace.evaluations_to(0.0) or 41 for trace in (warm, cold))
    assert needed <= alone
    assert warm.transfer == (str(source),) == tuple(warm.to_json()["transfer"])


def test_a_strategy_that_learns_from_nothing_is_refused(
    recordings: tuple[Recording, Recording],
) -> None:
    target, source = recordings
    with pytest.raises(WattuneError, match="allowed with transfer: evolutionary, bayesian"):
        replay(target, "random", 10, transfer=[source])


def test_the_command_takes_other_files(
    tmp_path: Path, recordings: tuple[Recording, Recording], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{at}.json.gz" for at in range(2)]
    for path, recorded in zip(paths, recordings, strict=True):
        write_table(recorded, path)
    main(
        [
            *("replay", str(paths[0]), "--transfer", str(paths[1]), "--strategy", "bayesian"),
            *("--seeds", "1", "--budget", str(LOOK)),
        ]
    )
    said = " ".join(capsys.readouterr().out.split())
    assert f"knowing {' '.join(str(recordings[1]).split())}" in said


def test_a_tune_of_a_new_shape_starts_from_what_others_found(tmp_path: Path) -> None:
    def tuned(database: Path) -> int:
        runner = FakeRunner()
        wt.tune([SMALL], TARGET, database, LOOK + 2, strategy="bayesian", runner=runner)
        return sum(map(best_of_all, runner.asked))

    known = tmp_path / "known.sqlite"
    wt.tune([OTHER], TARGET, known, 240, strategy="exhaustive", runner=FakeRunner())
    assert tuned(known) > 0
