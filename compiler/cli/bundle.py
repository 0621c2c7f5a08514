"""``wattune bundle``: candidates to be measured on a machine that has no compiler."""

from __future__ import annotations

from pathlib import Path

import click

from wattune.compiler.cli.bench import parse_problems
from wattune.compiler.cli.options import Workload, json_option, problem_options, target_options
from wattune.compiler.cli.output import print_json, say
from wattune.schedules.target import Target


@click.group("bundle")
def bundle_command() -> None:
    """Build candidates here, measure them on another machine."""


@bundle_command.command("create")
@problem_options
@target_options
@click.option("--op", "operator_name", help="Operator of --shapes.")
@click.option("--shapes", help="SHAPE,... as `wattune bench` reads them.")
@click.option("--field", "fields", multiple=True, help="A field of these problems, window=128.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Schedules of each problem beside the defaults.",
)
@click.option("--mode", type=click.Choice(["cold", "hot"]), default="cold", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@click.option("-o", "--output", required=True, type=Path, help="Folder to write.")
@json_option
def create_command(
    workload: Workload | None,
    target: str,
    threads: int | None,
    operator_name: str | None,
    shapes: str | None,
    fields: tuple[str, ...],
    samples: int,
    mode: str,
    seed: int,
    output: Path,
    as_json: bool,
) -> int:
    """Write a folder that measures its candidates: python FOLDER/run.py --out records.jsonl.

    `wattune import-records records.jsonl` brings the result home.
    """
    from wattune.compiler.bundle.create import create
    from wattune.compiler.cli.progress import Bar

    problems = [] if workload is None else workload.problems
    if (operator_name is None) != (shapes is None):
        raise click.UsageError("--op and --shapes go together")
    if operator_name and shapes:
        problems += parse_problems(operator_name, shapes, fields)
    if not problems:
        raise click.UsageError("nothing to do: give --op and --shapes, --model or --problem")
    with Bar("building") as bar:
        found = create(
            problems,
            Target.parse(target, threads),
            output,
            samples,
            mode,
            seed,
            built=lambda done, all_: bar.update(done, shown=f"{done}/{all_}"),
        )
    failed = [result for result in found.results if result.failure is not None]
    if as_json:
        failures = [result.message for result in failed]
        print_json({"candidates": len(found.results), "failed": failures, **found.needs})
    for result in failed[:5]:
        say(f"{result.candidate.problem}: {result.failure}: {result.message}")
    say(
        f"{output}: {len(found.results) - len(failed)} candidates of {len(found.problems)} "
        f"problems, {found.needs['bytes'] / 1e6:.1f} MB; python {output}/run.py --out FILE"
    )
    return 1 if len(failed) == len(found.results) else 0
