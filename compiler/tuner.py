"""Tune: search the schedules of some problems on one target, within trials and minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import cast

from wattune.compiler.database import Database
from wattune.compiler.measure.limits import Limits
from wattune.compiler.measure.meters import no_meter, open_meter
from wattune.compiler.measure.runner import LocalRunner, Runner
from wattune.compiler.measure.timing import BUDGET_SECONDS
from wattune.compiler.objective import Objective, no_energy, parse_objective
from wattune.compiler.search.events import PhaseStarted, Progress, silent
from wattune.compiler.search.groups import weights_of
from wattune.compiler.search.phases import run_phases
from wattune.compiler.search.rates import rates_of
from wattune.compiler.search.screen import Builds, Screen
from wattune.compiler.search.session import Session, Settings
from wattune.compiler.search.stopping import Budget
from wattune.compiler.search.strategy import strategy_class
from wattune.compiler.search.summary import summarise
from wattune.compiler.search.task import Task
from wattune.compiler.tune_report import TuneInterrupted, TuneReport
from wattune.cost_models.base import cost_model
from wattune.cost_models.prior import Rates
from wattune.cost_models.prior_model import PriorModel
from wattune.cost_models.xgboost_model import XGBoostModel
from wattune.errors import UnknownNameError, WattuneError
from wattune.ops import Problem
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target


def tune(
    problems: Sequence[Problem],
    target: Target,
    database: Database | str | Path = "tuned.sqlite",
    trials: int = 200,
    minutes: float | None = None,
    objective: str | Objective = "latency",
    strategy: str = "bayesian",
    mode: str = "cold",
    weights: Mapping[Problem, float] | None = None,
    multiplicity: Mapping[Problem, int] | None = None,
    tokens: Mapping[Problem, int] | None = None,
    seed: int = 0,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Search schedules for all problems and return what was found; records go to the database.

    ``trials`` counts distinct measured candidates of all problems, those of earlier tunes in the
    database included; ``minutes`` ends the search earlier. ``weights`` are the buckets' shares
    (by default all on the smallest), ``multiplicity`` how many layers have a problem, ``tokens``
    what a step of its bucket makes (by default what the problem says). Ctrl-C raises
    `TuneInterrupted`, which has the report so far. A tune in which nothing works is a
    `MeasureError`; an energy objective without a meter is a `TargetError`.
    """
    wanted = parse_objective(objective)
    # One that needs no more than physics gets the prior; what learns foretells energy all the same.
    model_name = strategy_class(strategy).model_name
    _check(problems, trials, minutes, mode)
    _check_meter(wanted, target, runner)
    tasks = _tasks(problems, target, weights, multiplicity or {}, tokens or {})
    report = progress or silent
    budget = Budget(trials, None if minutes is None else 60 * minutes)
    with ExitStack() as stack:
        # Before the database: a tune that cannot run here leaves no empty file behind.
        used = runner or stack.enter_context(LocalRunner(target, mode, seed=seed))
        records = stack.enter_context(_opened(database))
        settings = Settings(strategy, wanted, mode, fingerprint(target), seed)
        own = used if isinstance(used, LocalRunner) and runner is None else None
        rates = _rates(records, target, settings.fingerprint, report, own)
        model = cost_model("xgboost", mode=mode, rates=rates) if model_name else None
        prior = PriorModel(mode, rates)
        screen = _screen(used, wanted, mode, rates) if model_name else None
        session = Session(tasks, settings, records, used, budget, report, prior, model, screen)
        session.resume()
        try:
            stopped = run_phases(session)
        except KeyboardInterrupt:
            raise TuneInterrupted(summarise(session, "interrupted")) from None
        return summarise(session, stopped)


def _tasks(
    problems: Sequence[Problem],
    target: Target,
    weights: Mapping[Problem, float] | None,
    multiplicity: Mapping[Problem, int],
    tokens: Mapping[Problem, int],
) -> list[Task]:
    """Return the tasks of distinct problems; `ScheduleError` where no template serves one."""
    weight = weights_of(problems, weights)
    tasks = [
        Task(p, target, None, weight[p], multiplicity.get(p, 1), tokens.get(p, 0))
        for p in dict.fromkeys(problems)
    ]
    for task in tasks:
        task.defaults()
    return tasks


def _rates(
    database: Database,
    target: Target,
    machine: str,
    progress: Progress,
    runner: LocalRunner | None,
) -> dict[str, Rates]:
    """Return the machine's rates; with a ``runner`` they are measured where they are not known."""
    known = database.limits(machine)
    rates = rates_of(target, Limits.from_json(known)) if known else None
    if rates is None and runner is not None:
        progress(PhaseStarted("limits"))
        limits = runner.limits()
        database.set_limits(machine, limits.to_json())
        rates = rates_of(target, limits)
    return {} if rates is None else {target.key: rates}


def _screen(
    runner: Runner, objective: Objective, mode: str, rates: Mapping[str, Rates]
) -> Screen | None:
    """Return what chooses among built candidates, where building is cheap beside measuring."""
    if getattr(runner, "surplus", 1) == 1:
        return None
    model = XGBoostModel(mode, rates, built=True)
    return Screen(cast(Builds, runner), model, objective)


def _opened(database: Database | str | Path) -> AbstractContextManager[Database]:
    """Open a database by name; one that is open already stays open."""
    return nullcontext(database) if isinstance(database, Database) else Database(database)


def _check(problems: Sequence[Problem], trials: int, minutes: float | None, mode: str) -> None:
    if not problems:
        raise WattuneError("tune: no problems; allowed: at least one")
    if trials < 1:
        raise WattuneError(f"tune: trials is {trials!r}; allowed: an integer >= 1")
    if minutes is not None and not minutes > 0:
        raise WattuneError(f"tune: minutes is {minutes!r}; allowed: a number > 0")
    if mode not in BUDGET_SECONDS:
        raise UnknownNameError("measuring mode", mode, BUDGET_SECONDS)


def _check_meter(objective: Objective, target: Target, runner: Runner | None) -> None:
    """Refuse an energy objective where nothing measures energy, before anything is measured."""
    if not objective.needs_energy:
        return
    if runner is not None:
        source = getattr(runner, "energy_source", None)
    else:
        meter = open_meter(target.kind)
        source = meter and meter.source
        if meter is not None:
            meter.close()
    if source in (None, "none"):
        raise no_energy(objective, no_meter(target.kind))
