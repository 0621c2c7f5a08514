"""The report of a tune as one HTML page that needs no network."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from wattune.compiler import objective, report_charts
from wattune.compiler.report_data import PREDICTED, ProblemReport, Report
from wattune.compiler.search.energy_policy import Decision
from wattune.cost_models.evaluate import Trial
from wattune.errors import MissingDependencyError

TEMPLATE = "report.html.j2"
MESSAGES_PER_KIND = 3


def render(report: Report) -> str:
    """Return the page."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("jinja2", "a report") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = files("wattune.compiler").joinpath(TEMPLATE).read_text()
    return environment.from_string(source).render(
        report=report,
        rows=[_row(part) for part in report.problems],
        failures=_failures(report),
        trials=sum(part.trials for part in report.problems),
        stale=[str(part.problem) for part in report.problems if part.selected is None],
        curves=report_charts.curves({str(p.problem): p.speeds for p in report.problems}),
        predictions=_predictions(report),
        held_out=_held_out(report),
        accuracy=[_accuracy(trial) for trial in report.accuracy],
        front=_front(report),
        energy={str(p): [_decision(one) for one in rounds] for p, rounds in report.energy.items()},
    )


def _row(part: ProblemReport) -> dict[str, Any]:
    """Return the texts of one line of the schedule table."""
    schedule = part.best.candidate.schedule
    return {
        "problem": str(part.problem),
        "layers": part.share.multiplicity,
        "trials": part.trials,
        "default": f"{part.default.latency * 1e6:.1f}",
        "best": f"{part.best.latency * 1e6:.1f}",
        "speedup": f"{part.default.latency / part.best.latency:.2f}",
        "gops": f"{part.gops:.0f}",
        "gbps": f"{part.gbps:.1f}",
        "template": schedule.template,
        "knobs": ", ".join(f"{name} {value}" for name, value in schedule.knobs),
    }


def _decision(one: Decision) -> dict[str, str]:
    """Return the texts of one line of the table of energies."""
    return {
        "considered": str(one.considered),
        "measured": str(one.measured),
        "random": str(one.random),
        "fraction": f"{one.fraction:.3g}",
        "drift": _number(one.drift, ".3f"),
        "snr": _number(one.snr_db, ".1f"),
        "ceiling": _number(one.ceiling_db, ".1f"),
        "skill": _number(one.skill, ".2f"),
        "following": f"{one.following:.3g}",
        "reason": one.reason,
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _failures(report: Report) -> list[dict[str, Any]]:
    """Return, for each kind that occurred, the count and the most frequent messages."""
    found = []
    for kind, records in report.failures.items():
        messages = Counter(record.message.strip()[:200] for record in records)
        if records:
            common = messages.most_common(MESSAGES_PER_KIND)
            found.append({"kind": kind.replace("_", " "), "count": len(records), "common": common})
    return found


def _predictions(report: Report) -> str | None:
    """Draw the predictions that records carry; None where none does."""
    series = {
        str(part.problem): (
            [record.latency * 1e6 for record in part.predicted],
            [record.facts[PREDICTED] * 1e6 for record in part.predicted],
        )
        for part in report.problems
        if part.predicted
    }
    return report_charts.predictions(series) if series else None


def _held_out(report: Report) -> str | None:
    """Draw what a fresh cost model says of candidates it was not trained on."""
    series = {
        str(trial.problem): (list(trial.measured * 1e6), list(trial.predicted * 1e6))
        for trial in report.accuracy
    }
    if not series:
        return None
    return report_charts.predictions(series, "Predicted against measured latency, held out")


def _accuracy(trial: Trial) -> dict[str, str]:
    """Return the texts of one line of the table of the cost model's accuracy."""
    figures = asdict(trial.accuracy)
    return {
        "problem": str(trial.problem),
        "trained": str(trial.trained),
        "held_out": str(trial.held_out),
        **{name: "-" if value is None else f"{value:.2f}" for name, value in figures.items()},
    }


def _front(report: Report) -> str | None:
    """Draw latency and energy; None where no record has energy."""
    parts = [part for part in report.problems if part.with_energy]
    if not parts:
        return None
    return report_charts.front(
        {str(part.problem): _points(part.with_energy) for part in parts},
        {str(part.problem): _points(objective.front(part.with_energy)) for part in parts},
    )


def _points(records: list[Any]) -> report_charts.Points:
    """Return microseconds and millijoules."""
    return [r.latency * 1e6 for r in records], [r.joules * 1e3 for r in records]
