"""Sparse energy in a tune: latency first, few energies, and a database that says why."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.fakes import SMALL, TARGET, FakeRunner, smooth
from tests.compiler.fakes import fake_templates as fake_templates

from wattune.compiler.database import Database
from wattune.compiler.objective import parse_objective
from wattune.compiler.report import render
from wattune.compiler.report_data import collect, with_decisions
from wattune.compiler.search.energy_policy import Policy
from wattune.compiler.search.energy_stage import EnergyStage
from wattune.compiler.search.events import EnergyDecided, Event, RecordArrived
from wattune.compiler.search.task import Task
from wattune.compiler.tuner import tune
from wattune.cost_models.base import CostModel, Prediction
from wattune.ops import Problem, TernaryGemm
from wattune.schedules.candidate import Candidate, Record

pytestmark = pytest.mark.usefixtures("fake_templates")
OBJECTIVE = parse_objective("energy@10%")
# Only the fraction says how many energies are measured.
UNBOUND = replace(Policy(), most=2.0)


def watts(candidate: Candidate) -> float:
    """Return a power that depends on one knob of each kind."""
    v = candidate.schedule.values
    return float(100.0 * 1.05 ** int(v["unroll"]) * (1.2 if v["order"] == "row" else 1.0))


def unforeseen(candidate: Candidate) -> float:
    """Return a power of which the knobs tell nothing."""
    number = zlib.crc32(str(candidate.schedule).encode())
    return float(100.0 * np.exp(0.3 * np.random.default_rng(number).standard_normal()))


@dataclass
class MeteredApart(FakeRunner):
    """Measures energy where it is asked to; remembers of which candidates."""

    power: Callable[[Candidate], float] = watts
    drift: Callable[[int], float] = lambda at: 1.0
    metered: list[Candidate] = field(default_factory=list)

    @property
    def energy_source(self) -> str:
        return "rapl"

    def energy(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        for candidate in candidates:
            record = self.record(candidate)
            assert record.measurement is not None
            joules = self.power(candidate) * smooth(candidate) * self.drift(len(self.metered))
            self.metered.append(candidate)
            yield replace(
                record,
                measurement=replace(record.measurement, joules=joules),
                facts={"energy_spread": 0.002, "energy_windows": 2.0},
            )


class Knowing(CostModel):
    """Knows the power, times a factor, of what it is asked; every latency is a second."""

    name = "knowing"

    def __init__(self, wrong: Callable[[Candidate], float] = lambda candidate: 1.0) -> None:
        self.wrong = wrong

    def update(self, records: Sequence[Record]) -> None:
        pass

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        one = np.ones(len(candidates))
        energy = np.array([watts(c) * self.wrong(c) for c in candidates])
        return Prediction(one, one, one, energy, one)

    def to_state(self) -> dict[str, object]:
        return {}

    def from_state(self, state: object) -> None:
        pass


def records(count: int) -> list[Record]:
    rng = np.random.default_rng(1)
    candidates = list(Task(SMALL, TARGET).enumerate())
    return [FakeRunner().record(candidates[at]) for at in rng.permutation(len(candidates))[:count]]


def rounds(stage: EnergyStage, model: CostModel | None, runner: MeteredApart, number: int) -> None:
    """Let the stage decide several times over a history that grows."""
    history = records(160)
    energies: list[Record] = []
    for at in range(number):
        known = [*history[: 16 * (at + 1)], *energies]
        choice = stage.choose(known, model)
        found = list(runner.energy(choice.candidates))
        energies += found
        if found:
            stage.told(choice, found)


def test_only_what_is_near_the_best_latency_is_considered() -> None:
    stage, history = EnergyStage(OBJECTIVE), records(100)
    stage.policy = replace(stage.policy, early=0)
    choice = stage.choose(history, None)
    best = min(record.latency for record in history)
    # A percent more than the slack: latencies measured once are that exact.
    near = [r.candidate for r in history if r.latency <= 1.1 * 1.01 * best]
    assert set(choice.candidates) == set(near)
    assert 0 < choice.considered == len(near) < len(history)


def test_while_it_learns_the_next_fastest_are_taken_too() -> None:
    stage, history = EnergyStage(parse_objective("energy@0%")), records(100)
    choice = stage.choose(history, None)
    order = sorted(record.latency for record in history)
    assert sorted(smooth(c) for c in choice.candidates)[: stage.policy.early] == pytest.approx(
        order[: stage.policy.early]
    )


def test_without_a_bound_on_latency_all_are_considered() -> None:
    for name in ("energy", "edp"):
        choice = EnergyStage(parse_objective(name)).choose(records(50), None)
        assert choice.considered == len(choice.candidates) == 50


def test_a_model_that_foretells_well_is_asked_for_less() -> None:
    stage, runner = EnergyStage(parse_objective("energy"), policy=UNBOUND), MeteredApart()
    rounds(stage, Knowing(), runner, 8)
    fractions = [one.fraction for one in stage.decisions]
    assert fractions[:3] == [1.0, 1.0, 0.5] and fractions[-1] == stage.policy.smallest
    assert stage.decisions[-1].skill == pytest.approx(1.0, abs=0.01)
    last = stage.decisions[-1]
    assert last.measured >= stage.policy.least - 1 and last.random == 1
    assert len(runner.metered) < 16 * 8


def wrong(candidate: Candidate) -> float:
    return 1.5 if int(candidate.schedule.values["block"]) > 2 else 0.7


def test_a_model_that_foretells_badly_goes_on_measuring_all_that_it_may() -> None:
    stage, runner = EnergyStage(parse_objective("energy"), policy=UNBOUND), MeteredApart()
    rounds(stage, Knowing(wrong), runner, 6)
    assert {one.fraction for one in stage.decisions} == {1.0}
    assert stage.decisions[-1].reason == "the model foretells energy badly"
    # Every one once, and the incumbent again in each round but the first.
    assert len(set(runner.metered)) == 16 * 6
    assert len(runner.metered) == 16 * 6 + 5


def test_energies_are_a_share_of_the_latencies_however_bad_the_model() -> None:
    stage, runner = EnergyStage(parse_objective("energy")), MeteredApart()
    rounds(stage, Knowing(wrong), runner, 10)
    assert {one.fraction for one in stage.decisions} == {1.0}, "all would be measured"
    most = max(stage.policy.learning, int(stage.policy.most * 16 * 10))
    # Those of the rounds in which the share was used up: the incumbent, a sentinel and two more.
    assert most <= len(runner.metered) <= most + 8 * stage.policy.least
    assert [one.measured for one in stage.decisions[-4:]] == [stage.policy.least - 1] * 4
    assert all(one.random == 1 for one in stage.decisions[1:])


def test_latencies_to_come_count_as_well() -> None:
    stage, history, runner = EnergyStage(parse_objective("energy")), records(40), MeteredApart()
    known = [*history, *runner.energy([record.candidate for record in history[:24]])]
    least = stage.policy.least
    assert len(stage.choose(known, Knowing()).candidates) == least
    assert len(stage.choose(known, Knowing(), planned=120).candidates) == 30 - 24
    assert len(stage.choose(known, Knowing(), planned=400).candidates) == 40 - 24 + 1


def test_the_incumbent_is_measured_again_and_drift_is_doubted() -> None:
    # From the 46th energy on everything needs a tenth more.
    stage = EnergyStage(parse_objective("energy"), policy=UNBOUND)
    rounds(stage, Knowing(), MeteredApart(drift=lambda at: 1.1 if at >= 45 else 1.0), 6)
    moved = [at for at, one in enumerate(stage.decisions) if one.reason.endswith("has moved")]
    assert len(moved) == 1
    found = stage.decisions[moved[0]]
    assert found.drift == pytest.approx(1.1) and found.following == 1.0


def test_the_stage_goes_on_from_its_state() -> None:
    stage = EnergyStage(OBJECTIVE)
    rounds(stage, Knowing(), MeteredApart(), 3)
    again = EnergyStage(OBJECTIVE)
    again.from_state(stage.to_state())
    assert (again.fraction, again.forecasts, again.decisions) == (
        stage.fraction,
        stage.forecasts,
        stage.decisions,
    )


def test_a_tune_measures_few_energies_and_finds_the_least(tmp_path: Path) -> None:
    path, runner, events = tmp_path / "tuned.sqlite", MeteredApart(), list[Event]()

    def keep(event: Event) -> None:
        events.append(event)

    report = tune([SMALL], TARGET, path, 120, objective="energy@10%", runner=runner, progress=keep)
    decided = [event for event in events if isinstance(event, EnergyDecided)]
    assert decided and len(set(runner.metered)) < 0.4 * len(set(runner.asked))
    everything = list(Task(SMALL, TARGET).enumerate())
    best = min(smooth(candidate) for candidate in everything)
    least = min(watts(c) * smooth(c) for c in everything if smooth(c) <= 1.1 * best)
    [part] = report.problems
    assert part.selected is not None
    chosen = part.selected.candidate
    assert smooth(chosen) <= 1.1 * best
    assert watts(chosen) * smooth(chosen) <= 1.02 * least
    assert part.trials == 120, "an energy is no trial"
    with Database(path) as database:
        shown = with_decisions(collect(database.records()), database)
        assert [event.decision for event in decided] == list(shown.energy[SMALL])
        foretold = [r for r in database.records() if "predicted_watts" in r.facts]
    assert foretold and all(record.joules is not None for record in foretold)
    page = render(shown)
    assert "Which energies were measured" in page
    assert decided[-1].decision.reason in page


@pytest.mark.parametrize("count", [1, 2])
def test_a_tune_spends_its_share_of_energies_before_its_latencies(
    tmp_path: Path, count: int
) -> None:
    problems, trials = [SMALL, TernaryGemm(1, 64, 128)][:count], 128 * count
    policy, planned = Policy(), trials // count
    latencies, energies = Counter[Problem](), Counter[Problem]()
    full, early = Counter[Problem](), Counter[Problem]()

    def follow(event: Event) -> None:
        if isinstance(event, RecordArrived):
            latencies[event.record.candidate.problem] += event.record.joules is None
        if isinstance(event, EnergyDecided):
            problem, found = event.problem, event.decision
            # The incumbent is measured again: an energy like the others.
            measured = found.measured + (found.drift is not None)
            now, left = (
                max(policy.learning, int(policy.most * number)) - energies[problem]
                for number in (latencies[problem], max(planned, latencies[problem]))
            )
            assert measured <= max(left, policy.least), "more than the share"
            full[problem] += left <= policy.least
            early[problem] += measured > max(now, policy.least)
            energies[problem] += measured

    path, runner = tmp_path / "tuned.sqlite", MeteredApart(power=unforeseen)
    tune(problems, TARGET, path, trials, objective="energy", runner=runner, progress=follow)
    assert all(full[problem] and early[problem] for problem in problems)


def test_a_latency_objective_measures_no_energy(tmp_path: Path) -> None:
    runner = MeteredApart()
    tune([SMALL], TARGET, tmp_path / "tuned.sqlite", 40, runner=runner)
    assert runner.metered == []
