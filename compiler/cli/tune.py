"""``wattune tune``: search schedules, with everything measured kept in a database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wattune.compiler.cli.options import (
    Workload,
    database_option,
    json_option,
    needed,
    objective_option,
    problem_options,
    target_options,
)
from wattune.compiler.cli.output import duration, print_json, print_table
from wattune.compiler.cli.progress import Bar
from wattune.ops import Problem
from wattune.schedules.target import Target

if TYPE_CHECKING:
    from wattune.compiler.search.events import Event
    from wattune.compiler.tune_report import ProblemReport, TuneReport

DEFAULT_TRIALS = 200
# With minutes alone, trials must not end the tune.
ANY_TRIALS = 1_000_000
_PHASES = {
    "limits": "measuring the machine's limits",
    "search": "searching",
    "layouts": "comparing layouts",
    "confirm": "confirming",
}


class TuneBar:
    """Shows a tune's events on a bar: trials where they end the tune, else the time."""

    def __init__(self, trials: int | None, minutes: float | None) -> None:
        """Choose what the bar counts."""
        self.seconds = None if minutes is None else 60 * minutes
        self.by_time = trials is None and minutes is not None
        total = self.seconds if self.by_time else trials or DEFAULT_TRIALS
        self.bar = Bar("tuning", None if total is None else int(total))
        self.phase = ""
        self.started = time.monotonic()
        self.trials = 0

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from wattune.compiler.search.events import PhaseStarted, RecordArrived, RoundStarted

        text = ""
        if isinstance(event, PhaseStarted):
            self.phase = event.phase
        elif isinstance(event, RoundStarted):
            self.phase, text = event.phase, str(event.problem)
        elif isinstance(event, RecordArrived):
            self.trials = event.trials
            text = str(event.record.candidate.problem)
            if event.best is not None:
                text += f" {duration(event.best.latency)}"
        else:
            return
        what = f"{_PHASES.get(self.phase, self.phase)} {text}".rstrip()
        if self.by_time:
            passed = int(time.monotonic() - self.started)
            self.bar.update(passed, what, f"{self.trials} trials")
        else:
            self.bar.update(self.trials, what)


@click.command("tune")
@problem_options
@target_options
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help=f"Candidates to measure, earlier tunes' included  [default: {DEFAULT_TRIALS}, with "
    "--minutes as many as fit]",
)
@click.option("--minutes", type=float, help="End the search after so many minutes.")
@database_option
@objective_option
@click.option("--strategy", default="evolutionary", show_default=True, help="How to search.")
@click.option("--mode", default="cold", show_default=True, help="cold, or hot (data in caches).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@json_option
def tune_command(
    workload: Workload | None,
    target: str,
    threads: int | None,
    trials: int | None,
    minutes: float | None,
    database: str,
    objective: str,
    strategy: str,
    mode: str,
    seed: int,
    as_json: bool,
) -> None:
    """Search schedules for a model's layers or for single problems.

    Every record is kept in the database as it arrives; the same command goes on where an earlier
    one ended.
    """
    work = needed(workload)
    report = run_tune(
        work.problems,
        Target.parse(target, threads),
        database,
        trials=trials,
        minutes=minutes,
        objective=objective,
        strategy=strategy,
        mode=mode,
        weights=work.weights,
        multiplicity=work.multiplicity,
        tokens=work.tokens,
        seed=seed,
    )
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


def run_tune(
    problems: Sequence[Problem],
    target: Target,
    database: str,
    trials: int | None = None,
    minutes: float | None = None,
    **options: Any,
) -> TuneReport:
    """Tune with a progress bar; Ctrl-C says what was kept."""
    from wattune.compiler.tune_report import TuneInterrupted
    from wattune.compiler.tuner import tune

    most = trials or (DEFAULT_TRIALS if minutes is None else ANY_TRIALS)
    show = TuneBar(trials, minutes)
    try:
        with show.bar:
            return tune(problems, target, database, most, minutes, progress=show, **options)
    except TuneInterrupted as stop:
        kept = f"{stop.report.trials} measured candidates are kept in {database}"
        raise KeyboardInterrupt(f"{kept}; the same command goes on from there") from None


def print_report(report: TuneReport) -> None:
    """Print a table of the problems, what failed, and the model's milliseconds per token."""
    columns = ("problem", ">layers", ">trials", ">default", ">tuned", ">faster", "template")
    print_table(columns, [_row(part) for part in report.problems])
    failures = ", ".join(f"{count} {kind}" for kind, count in report.failures.items()) or "none"
    total = report.ms_per_token
    click.echo(
        f"\n{report.trials} trials ({report.resumed} from earlier tunes), "
        f"{duration(report.seconds)}, {report.candidates_per_second:.1f} candidates/s, "
        f"ended by {report.stopped}; failures: {failures}"
    )
    if total.measured is not None:
        parts = (("default", total.default), ("predicted", total.predicted))
        others = ", ".join(f"{name} {value:.4g}" for name, value in parts if value is not None)
        click.echo(f"milliseconds per token over all layers: {total.measured:.4g} ({others})")


def _row(part: ProblemReport) -> tuple[object, ...]:
    selected = part.selected
    return (
        part.problem,
        part.multiplicity,
        part.trials,
        "-" if part.default is None else duration(part.default.latency),
        "-" if selected is None else duration(selected.latency),
        "-" if part.speedup is None else f"{part.speedup:.2f}x",
        "-" if selected is None else selected.candidate.schedule.template,
    )
