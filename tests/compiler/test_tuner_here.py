"""One tune without fakes: real templates, builds and measurements on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import wattune as wt
from wattune.compiler.database import Database
from wattune.compiler.measure.confirm import is_confirmation
from wattune.compiler.measure.runner import LocalRunner
from wattune.compiler.select import select
from wattune.schedules.template import default_candidate


@pytest.mark.measure
def test_a_tune_measures_confirms_and_selects_for_a_group(tmp_path: Path) -> None:
    target, path = wt.Target.native(threads=1), tmp_path / "tuned.sqlite"
    problems = [wt.TernaryGemm(tokens, 64, 128) for tokens in (1, 3)]
    with LocalRunner(target) as runner:
        report = wt.tune(problems, target, path, trials=8, runner=runner)
    assert (report.trials, report.stopped) == (8, "trials")
    for part in report.problems:
        assert part.default and part.default.candidate == default_candidate(part.problem, target)
        assert part.best and part.best.latency <= part.default.latency
        assert is_confirmation(part.default) and is_confirmation(part.best)
    chosen = select(problems, target, path)
    assert len({str(selection.layout) for selection in chosen.values()}) == 1
    assert [chosen[p].record for p in problems] == [part.selected for part in report.problems]
    with Database(path) as database:
        assert all(record.valid for record in database.records())
