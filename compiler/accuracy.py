"""How good a cost model is on a database's own records: trained on some, judged on the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wattune.compiler.database import Database
from wattune.compiler.measure.limits import Limits
from wattune.compiler.search.rates import rates_of
from wattune.cost_models.base import CostModel, cost_model, model_options
from wattune.cost_models.evaluate import Trial, by_machine, evaluate
from wattune.cost_models.prior import Rates
from wattune.errors import DatabaseError
from wattune.schedules.target import Target


def judge(
    database: Database,
    model: str = "xgboost",
    train: int = 64,
    seeds: int = 3,
    transfer: bool = False,
    mode: str | None = None,
) -> list[Trial]:
    """Train the named model on ``train`` candidates of each task and test it on its others.

    Every task (problem and target) is split ``seeds`` times; with ``transfer`` the model has seen
    all records of other tasks, machines included. Records of different machines or modes are never
    compared. Raises `DatabaseError` where no task has enough candidates.
    """
    records = database.records(mode=mode)
    found: list[Trial] = []
    for (_, machine, mode_of_group), mine in by_machine(records).items():
        others = [r for r in records if r.conditions.mode == mode_of_group] if transfer else ()
        target = mine[0].candidate.target
        make = maker(model, mode_of_group, measured_rates_of(database, target, machine))
        for seed in range(seeds):
            found += evaluate(make, mine, train, seed, others)
    if not found:
        raise DatabaseError(
            f"no problem has {train} candidates to train on and 8 more to test; "
            "tune longer, or train on fewer"
        )
    return found


def maker(model: str, mode: str, rates: dict[str, Rates]) -> Callable[[], CostModel]:
    """Return what makes a fresh model of this name."""
    known = {"mode": mode, "rates": rates}
    wanted = {name: value for name, value in known.items() if name in model_options(model)}
    return partial(cost_model, model, **wanted)


def measured_rates_of(database: Database, target: Target, machine: str) -> dict[str, Rates]:
    """Return the measured rates of a machine, where the database has them."""
    known = database.limits(machine)
    rates = rates_of(target, Limits.from_json(known)) if known else None
    return {} if rates is None else {target.key: rates}
