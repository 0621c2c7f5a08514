"""How good a cost model is on recorded data: trained on some records, judged on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wattune.compiler.database import Database
from wattune.compiler.measure.limits import Limits
from wattune.compiler.replay.read import read_recording
from wattune.compiler.search.rates import rates_of
from wattune.compiler.sqlite_file import DATABASE_MAGIC
from wattune.cost_models.base import CostModel, cost_model, model_options
from wattune.cost_models.evaluate import Trial, by_machine, evaluate
from wattune.cost_models.prior import Rates
from wattune.schedules.candidate import Record
from wattune.schedules.target import Target


@dataclass(frozen=True)
class Evidence:
    """Records, and the measured rates of their machines by fingerprint and `Target.key`."""

    records: Sequence[Record]
    rates: Mapping[str, Mapping[str, Rates]] = field(default_factory=dict)


def read_evidence(paths: Sequence[str | Path], mode: str | None = None) -> Evidence:
    """Read databases and whatever else `read_recording` reads; of one mode or of all."""
    records: list[Record] = []
    rates: dict[str, Mapping[str, Rates]] = {}
    for path in paths:
        if _is_recording(path):
            found = read_recording(path).records()
            records += [r for r in found if mode in (None, r.conditions.mode)]
            continue
        with Database(path, create=False, read_only=True) as database:
            mine = database.records(mode=mode)
            records += mine
            for (_, machine, _), group in by_machine(mine).items():
                known = measured_rates_of(database, group[0].candidate.target, machine)
                rates[machine] = {**rates.get(machine, {}), **known}
    return Evidence(records, rates)


def _is_recording(path: str | Path) -> bool:
    """Say whether a file is there and is no database."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(DATABASE_MAGIC)) != DATABASE_MAGIC


def judge(
    evidence: Evidence,
    model: str = "xgboost",
    train: int = 64,
    seeds: int = 3,
    transfer: bool = False,
) -> list[Trial]:
    """Train the named model on ``train`` candidates of each task and test it on its others.

    Every task (problem and target) is split ``seeds`` times; with ``transfer`` the model has seen
    all records of other tasks, of other machines too. Records of different machines or modes are
    never compared. Tasks with too few candidates are left out.
    """
    found: list[Trial] = []
    for (_, machine, mode), mine in by_machine(evidence.records).items():
        others = [r for r in evidence.records if r.conditions.mode == mode] if transfer else ()
        make = maker(model, mode, evidence.rates.get(machine, {}))
        for seed in range(seeds):
            found += evaluate(make, mine, train, seed, others)
    return found


def maker(model: str, mode: str, rates: Mapping[str, Rates]) -> Callable[[], CostModel]:
    """Return what makes a fresh model of this name."""
    known = {"mode": mode, "rates": rates}
    wanted = {name: value for name, value in known.items() if name in model_options(model)}
    return partial(cost_model, model, **wanted)


def measured_rates_of(database: Database, target: Target, machine: str) -> dict[str, Rates]:
    """Return the measured rates of a machine, where the database has them."""
    known = database.limits(machine)
    rates = rates_of(target, Limits.from_json(known)) if known else None
    return {} if rates is None else {target.key: rates}
