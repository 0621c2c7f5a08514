"""``wattune report``: what a database holds, as one offline page."""

from __future__ import annotations

from pathlib import Path

import click

from wattune.compiler.cli.options import Workload, database_option, json_option, problem_options
from wattune.compiler.cli.output import print_json, say
from wattune.compiler.report_data import Share, collect, with_accuracy, with_decisions


@click.command("report")
@database_option
@problem_options
@click.option("--mode", type=click.Choice(["cold", "hot"]), help="[default: of the newest record]")
@click.option("-o", "--output", default="report.html", show_default=True, help="The page.")
@json_option
def report_command(
    database: str,
    workload: Workload | None,
    mode: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Write an HTML page about a database; with --model, milliseconds per token of its layers."""
    from wattune.compiler.database import Database
    from wattune.compiler.report import render

    shares = None
    if workload:
        counts, weights, tokens = workload.multiplicity, workload.weights, workload.tokens
        shares = {p: Share(counts[p], weights[p], tokens[p]) for p in counts}
    with Database(database, create=False, read_only=True) as db:
        report = with_accuracy(with_decisions(collect(db.records(), mode, shares), db), db)
    Path(output).write_text(render(report))
    if as_json:
        print_json(report.to_json())
    say(f"{output} written")
