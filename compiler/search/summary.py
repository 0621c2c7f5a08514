"""From a session to its report."""

from __future__ import annotations

from wattune.compiler.models.step import tokens_of
from wattune.compiler.search.session import Session
from wattune.compiler.search.standings import Standing, one_a_trial, scored, standings
from wattune.compiler.search.task import Task
from wattune.compiler.select import Selection, select_from
from wattune.compiler.tune_report import (
    ProblemReport,
    TuneReport,
    best_so_far,
    failures_by_kind,
    predictions,
)
from wattune.schedules.candidate import Record


def summarise(session: Session, stopped: str) -> TuneReport:
    """Return the report of a session as it stands."""
    tasks, settings = session.tasks, session.settings
    weights = {task.problem: task.weight for task in tasks}
    target = tasks[0].target
    chosen = select_from(list(weights), target, session.history, settings.objective, weights)
    parts = [_problem_report(session, task, chosen[task.problem]) for task in tasks]
    return TuneReport(
        problems=tuple(parts),
        target=target,
        fingerprint=settings.fingerprint,
        objective=settings.objective.name,
        strategy=settings.strategy,
        mode=settings.mode,
        stopped=stopped,
        seconds=session.budget.elapsed,
        candidates_per_second=session.measured / max(session.measuring_seconds, 1e-9),
    )


def _problem_report(session: Session, task: Task, selection: Selection) -> ProblemReport:
    records = session.history[task.problem]
    found = standings(records)
    default = task.defaults()[0]
    return ProblemReport(
        problem=task.problem,
        multiplicity=task.multiplicity,
        weight=task.weight,
        tokens=task.tokens or tokens_of(task.problem),
        trials=session.trials(task.problem),
        resumed=session.resumed[task.problem],
        default=next((s.record for s in found if s.candidate == default), None),
        best=_best(session, found),
        selected=selection.record,
        predicted_seconds=_predicted(session, selection.record),
        layout=str(selection.layout),
        failures=failures_by_kind(records),
        curve=best_so_far(one_a_trial(records)),
        predictions=predictions(one_a_trial(records)),
    )


def _best(session: Session, found: list[Standing]) -> Record | None:
    """Return the best of the newest confirmation, or of single measurements before the first."""
    newest = max((standing.session for standing in found), default=0.0)
    rivals = [standing for standing in found if standing.session == newest]
    ranked = scored(rivals, session.settings.objective)
    return ranked[0][1].record if ranked else None


def _predicted(session: Session, record: Record | None) -> float | None:
    """Return what the model says of a candidate by now; None without a model."""
    if record is None or session.model is None:
        return None
    return float(session.model.predict([record.candidate]).latency[0])
