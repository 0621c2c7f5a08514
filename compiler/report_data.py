"""What a report shows, as plain data made from a database's records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from wattune.compiler.accuracy import maker, measured_rates_of
from wattune.compiler.database import Database
from wattune.compiler.measure.confirm import SESSION
from wattune.compiler.models.step import tokens_of
from wattune.compiler.objective import parse_objective
from wattune.compiler.search.energy_policy import Decision
from wattune.compiler.search.energy_stage import decisions_of, energy_state
from wattune.compiler.search.groups import weights_of
from wattune.compiler.search.standings import eligible, one_a_trial
from wattune.compiler.select import select_from
from wattune.compiler.step_time import Calls, ms_per_token
from wattune.cost_models.evaluate import Trial, evaluate, summary
from wattune.errors import DatabaseError
from wattune.ops import Problem, Work, operator
from wattune.schedules.candidate import FAILURE_KINDS, Record, Schedule
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

# The fact of a record that holds what the cost model predicted before it was measured.
PREDICTED = "predicted_seconds"
# Candidates of a problem without which a cost model is not judged, and those that train it.
_LEAST_JUDGED, _MOST_TRAINED = 16, 64


@dataclass(frozen=True)
class Share:
    """A problem's part in a model: its layers, and its bucket's share of the decoding steps.

    A step of the bucket makes ``tokens`` tokens; 0 is as many as the problem says.
    """

    multiplicity: int = 1
    weight: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class ProblemReport:
    """One problem: its valid records and its failures, in the order they came.

    ``selected`` is what `compile` takes, in the layout that all buckets of a weight agree on; None
    where no record was made by today's templates.
    """

    problem: Problem
    records: tuple[Record, ...]
    failures: tuple[Record, ...]
    share: Share = Share()
    selected: Record | None = None
    default_schedule: Schedule | None = None

    @property
    def trials(self) -> int:
        """Count the distinct candidates that were measured or failed."""
        return len({record.candidate.schedule for record in (*self.records, *self.failures)})

    @cached_property
    def confirmed(self) -> list[Record]:
        """Return the records of the newest session of interleaved re-measurement."""
        session = max((r.facts.get(SESSION, 0.0) for r in self.records), default=0.0)
        return [r for r in self.records if session and r.facts.get(SESSION) == session]

    @cached_property
    def default(self) -> Record:
        """Return the default schedule's record, a confirmed one first."""
        again = [r for r in self.confirmed if r.candidate.schedule == self._default]
        return again[0] if again else self._first_of(self.records)

    @property
    def _default(self) -> Schedule:
        """Return the default schedule; where it was not measured, the first one that was."""
        known = [record.candidate.schedule for record in self.records]
        wanted = self.default_schedule
        return wanted if wanted is not None and wanted in known else known[0]

    def _first_of(self, records: Sequence[Record]) -> Record:
        return next(r for r in records if r.candidate.schedule == self._default)

    @cached_property
    def best(self) -> Record:
        """Return what is selected; else the record of the least latency, a confirmed one first."""
        found = min(self.confirmed or self.records, key=lambda record: record.latency)
        return self.selected or found

    @property
    def speeds(self) -> list[float]:
        """Return the best speed after each trial, over the default schedule's."""
        trials = one_a_trial(self.records)
        first = self._first_of(trials).latency
        best, found = float("inf"), []
        for record in trials:
            best = min(best, record.latency)
            found.append(first / best)
        return found

    @property
    def predicted(self) -> list[Record]:
        """Return the records that carry a prediction."""
        return [record for record in self.records if PREDICTED in record.facts]

    @property
    def with_energy(self) -> list[Record]:
        """Return the newest record with measured energy of each candidate."""
        found = {r.candidate: r for r in self.records if r.joules is not None}
        return list(found.values())

    @property
    def work(self) -> Work:
        """Return what a call must do."""
        return operator(self.problem.operator).work(self.problem)

    @property
    def gops(self) -> float:
        """Return billions of operations a second of the best record."""
        return self.work.operations / self.best.latency / 1e9

    @property
    def gbps(self) -> float:
        """Return billions of bytes a second of the best record, of those that must move."""
        return self.work.bytes / self.best.latency / 1e9

    @property
    def tokens(self) -> int:
        """Return how many tokens a step makes."""
        return self.share.tokens or tokens_of(self.problem)

    def calls(self, record: Record) -> Calls:
        """Return the problem's calls, as fast as a record of it."""
        share = self.share
        return Calls(self.problem, share.multiplicity, share.weight, self.tokens, record.latency)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "problem": self.problem.to_json(),
            "multiplicity": self.share.multiplicity,
            "weight": self.share.weight,
            "tokens": self.tokens,
            "trials": self.trials,
            "default_seconds": self.default.latency,
            "best_seconds": self.best.latency,
            "speedup": self.default.latency / self.best.latency,
            "gops": self.gops,
            "gbps": self.gbps,
            "joules": self.best.joules,
            "schedule": self.best.candidate.schedule.to_json(),
            "speeds": self.speeds,
        }


@dataclass(frozen=True)
class Bucket:
    """All layers that have the same run-time sizes: milliseconds of a step, default and best."""

    sizes: Mapping[str, int]
    tokens: int
    weight: float
    default_ms: float
    best_ms: float

    def __str__(self) -> str:
        """Return the sizes as people write them."""
        return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in self.sizes.items())


@dataclass(frozen=True)
class Report:
    """Everything the page shows; ``buckets`` is empty where no model was named.

    ``energy``: what was decided, round by round, about which energies to measure. ``accuracy``: how
    well a fresh cost model knows candidates that it was not trained on.
    """

    target: Target
    fingerprint: str
    mode: str
    problems: tuple[ProblemReport, ...]
    unmeasured: tuple[Problem, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    energy: Mapping[Problem, Sequence[Decision]] = field(default_factory=dict)
    accuracy: Sequence[Trial] = ()
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))

    @property
    def failures(self) -> dict[str, list[Record]]:
        """Return the failures of each kind."""
        found: dict[str, list[Record]] = {kind: [] for kind in FAILURE_KINDS}
        for part in self.problems:
            for record in part.failures:
                found[str(record.failure)].append(record)
        return found

    @property
    def energy_sources(self) -> list[str]:
        """Return what measured energy: meter names, ``none`` among them."""
        found = {
            r.measurement.energy_source
            for part in self.problems
            for r in part.records
            if r.measurement
        }
        return sorted(found)

    def ms_per_token(self, which: str) -> float | None:
        """Return milliseconds per token over all layers; ``which``: ``default`` or ``best``.

        None where no measured problem has weight.
        """
        return ms_per_token(part.calls(getattr(part, which)) for part in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        whole = {which: self.ms_per_token(which) for which in ("default", "best") if self.buckets}
        return {
            "target": self.target.to_json(),
            "fingerprint": self.fingerprint,
            "mode": self.mode,
            "ms_per_token": whole or None,
            "buckets": [asdict(bucket) for bucket in self.buckets],
            "problems": [part.to_json() for part in self.problems],
            "unmeasured": [problem.to_json() for problem in self.unmeasured],
            "failures": {kind: len(found) for kind, found in self.failures.items()},
            "energy_sources": self.energy_sources,
            "accuracy": summary(self.accuracy),
            "energy_decisions": [
                {"problem": problem.to_json(), "rounds": [one.to_json() for one in rounds]}
                for problem, rounds in self.energy.items()
            ],
        }


def collect(
    records: Sequence[Record],
    mode: str | None = None,
    shares: Mapping[Problem, Share] | None = None,
) -> Report:
    """Build the report of the newest target and machine in these records.

    ``shares`` names a model's problems; without it all problems are shown, and no milliseconds
    per token. Records of different targets, machines or modes are never mixed.
    """
    wanted = [r for r in records if mode is None or r.conditions.mode == mode]
    if not any(record.valid for record in wanted):
        raise DatabaseError("no measured records to report; run `wattune tune` first")
    newest = max((r for r in wanted if r.valid), key=lambda r: r.provenance.created)
    found: dict[Problem, list[Record]] = {}
    for record in wanted:
        if _group(record) == _group(newest):
            found.setdefault(record.candidate.problem, []).append(record)
    chosen = shares or dict.fromkeys(found, Share())
    measured = {p: found[p] for p in chosen if any(r.valid for r in found.get(p, ()))}
    selected = _selected(measured, newest.candidate.target, chosen)
    parts = tuple(
        ProblemReport(
            problem,
            tuple(r for r in mine if r.valid),
            tuple(r for r in mine if not r.valid),
            chosen[problem],
            selected[problem],
            default_candidate(problem, newest.candidate.target).schedule,
        )
        for problem, mine in measured.items()
    )
    return Report(
        target=newest.candidate.target,
        fingerprint=newest.provenance.fingerprint,
        mode=newest.conditions.mode,
        problems=parts,
        unmeasured=tuple(p for p in chosen if p not in measured),
        buckets=_buckets(parts) if shares and parts else (),
    )


def with_decisions(report: Report, database: Database) -> Report:
    """Return the report with the decisions about energy that its tunes left in the database."""
    found: dict[Problem, Sequence[Decision]] = {}
    for part in report.problems:
        name = energy_state(report.fingerprint, report.mode, part.problem, report.target)
        if (state := database.get_state(name)) is not None:
            found[part.problem] = decisions_of(state)
    return replace(report, energy=found)


def with_accuracy(report: Report, database: Database) -> Report:
    """Return the report with the cost model's accuracy on the records that it shows.

    One split a problem: half of its candidates, at most 64, train a fresh model. Problems with
    fewer than 16 candidates are left out.
    """
    make = maker(
        "xgboost", report.mode, measured_rates_of(database, report.target, report.fingerprint)
    )
    found: list[Trial] = []
    for part in report.problems:
        count = len({record.candidate for record in part.records})
        if count >= _LEAST_JUDGED:
            found += evaluate(make, [*part.records, *part.failures], min(count // 2, _MOST_TRAINED))
    return replace(report, accuracy=found)


def _selected(
    found: Mapping[Problem, Sequence[Record]], target: Target, shares: Mapping[Problem, Share]
) -> dict[Problem, Record | None]:
    """Return what `select` takes for each problem from the records that may be selected."""
    usable = {p: kept for p, mine in found.items() if (kept := [r for r in mine if eligible(r)])}
    weights = weights_of(list(usable), {p: shares[p].weight for p in usable})
    chosen = select_from(list(usable), target, usable, parse_objective("latency"), weights)
    return {p: chosen[p].record if p in chosen else None for p in found}


def _group(record: Record) -> tuple[str, str, str]:
    return record.candidate.target.key, record.provenance.fingerprint, record.conditions.mode


def _buckets(parts: Sequence[ProblemReport]) -> tuple[Bucket, ...]:
    """Add up the layers of equal run-time sizes."""
    layers: dict[tuple[tuple[str, int], ...], list[ProblemReport]] = {}
    for part in parts:
        layers.setdefault(tuple(part.problem.sizes.items()), []).append(part)
    found = []
    for sizes, mine in sorted(layers.items(), key=lambda item: item[0]):
        default, best = (
            sum(1e3 * part.share.multiplicity * getattr(part, which).latency for part in mine)
            for which in ("default", "best")
        )
        first = mine[0]
        found.append(Bucket(dict(sizes), first.tokens, first.share.weight, default, best))
    return tuple(found)
