"""``wattune tune``: search schedules, with everything measured kept in a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from wattune.compiler.cli.tune_bar import DEFAULT_TRIALS, TuneBar
from wattune.ops import Problem
from wattune.schedules.target import Target

if TYPE_CHECKING:
    from wattune.compiler.cache_layouts import Comparison
    from wattune.compiler.tune_report import ProblemReport, TuneReport

# With minutes alone, trials must not end the tune.
ANY_TRIALS = 1_000_000
# Layouts whose times differ by less are said to be equally fast: best schedules of two problems
# are not measured side by side.
CLEARLY = 1.03


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
@click.option("--strategy", default="bayesian", show_default=True, help="How to search.")
@click.option("--mode", default="cold", show_default=True, help="cold, or hot (data in caches).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@click.option(
    "--explore-layout",
    is_flag=True,
    help="Tune caches in every layout and say which is faster for the model.",
)
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
    explore_layout: bool,
    as_json: bool,
) -> None:
    """Search schedules for a model's layers or for single problems.

    Every record is kept in the database as it arrives; the same command goes on where an earlier
    one ended.
    """
    from wattune.compiler.cache_layouts import choices, compare

    work = needed(workload)
    shares: dict[str, Mapping[Problem, Any]] = {
        "weights": work.weights,
        "multiplicity": work.multiplicity,
        "tokens": work.tokens,
    }
    found = choices(work.problems) if explore_layout else None
    if found is not None:
        shares = {name: found.spread(values) for name, values in shares.items()}
    report = run_tune(
        work.problems if found is None else found.problems,
        Target.parse(target, threads),
        database,
        trials=trials,
        minutes=minutes,
        objective=objective,
        strategy=strategy,
        mode=mode,
        seed=seed,
        **shares,
    )
    comparison = None if found is None else compare(found, report)
    if as_json:
        data = report.to_json() if comparison is None else comparison.report.to_json()
        print_json(data if comparison is None else {**data, "layouts": comparison.to_json()})
        return
    print_report(report, None if comparison is None else comparison.report)
    if comparison is not None:
        click.echo(_verdict(comparison))


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


def print_report(report: TuneReport, model: TuneReport | None = None) -> None:
    """Print a table of the problems, what failed, and the model's milliseconds per token.

    ``model`` is the part of the report that the model consists of, all where it is None.
    """
    columns = ("problem", ">layers", ">trials", ">default", ">tuned", ">faster", "template")
    print_table(columns, [_row(part) for part in report.problems])
    failures = ", ".join(f"{count} {kind}" for kind, count in report.failures.items()) or "none"
    total = (model or report).ms_per_token
    click.echo(
        f"\n{report.trials} trials ({report.resumed} from earlier tunes), "
        f"{duration(report.seconds)}, {report.candidates_per_second:.1f} candidates/s, "
        f"ended by {report.stopped}; failures: {failures}"
    )
    if total.measured is not None:
        parts = (("default", total.default), ("predicted", total.predicted))
        others = ", ".join(f"{name} {value:.4g}" for name, value in parts if value is not None)
        click.echo(f"milliseconds per token over all layers: {total.measured:.4g} ({others})")


def _verdict(comparison: Comparison) -> str:
    """Say which layout is faster and by how much."""
    figures = comparison.milliseconds
    if comparison.fastest is None:
        missing = ", ".join(name for name in comparison.reports if name not in figures)
        return f"no figure for caches in layout {missing}: more trials are needed"
    shown = ", ".join(f"{layout} {value:.4g}" for layout, value in figures.items())
    gain = comparison.speedup or 1.0
    verdict = (
        f"layout {comparison.fastest} is faster for this model, {gain:.3g}x"
        if gain >= CLEARLY
        else f"layouts {', '.join(figures)} are equally fast for this model"
    )
    return f"{verdict}: milliseconds per token of what reads or writes caches: {shown}"


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
