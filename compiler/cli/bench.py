"""``wattune bench``: exported kernels beside their peers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any

import click

from wattune.compiler.bench.rows import BenchResult, Row
from wattune.compiler.cli.options import database_option
from wattune.compiler.cli.output import duration, print_table, say, write_json
from wattune.compiler.cli.progress import Bar
from wattune.errors import ProblemError, UnknownNameError
from wattune.ops import Problem, operator, problem_from_json
from wattune.schedules.candidate import canonical
from wattune.schedules.target import Target


@click.command("bench")
@click.argument("operator_name", metavar="OPERATOR")
@click.option(
    "--shapes",
    required=True,
    help="SHAPE,... as the operator writes it: TOKENSxOUTxIN for ternary_gemm, "
    "BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIM for decode_attention; a wrong one says what is "
    "right.",
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="A field of all problems, as dtype=int8, window=128, soft_cap=30.0 or sinks=true.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--mode", type=click.Choice(["cold", "hot"]), default="cold", show_default=True)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="For tuning what is not in the database.",
)
@database_option
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--shared-layout", is_flag=True, help="One layout for problems that share data.")
@click.option(
    "--ragged", is_flag=True, help="Requests of an eighth of the context up to all of it."
)
@click.option("--json", "json_file", help="Write the rows to a file; - is standard output.")
def bench_command(
    operator_name: str,
    shapes: str,
    fields: tuple[str, ...],
    threads: int,
    mode: str,
    minutes: float,
    database: str,
    rounds: int,
    shared_layout: bool,
    ragged: bool,
    json_file: str | None,
) -> int:
    """Measure OPERATOR's exported kernels beside torch and ggml, each in a process of its own."""
    from wattune.compiler.bench.data import lengths_name
    from wattune.compiler.bench.prepare import with_companions

    problems = parse_problems(operator_name, shapes, fields)
    target = Target.native(threads)
    if ragged:
        lengths_name(problems[0])
    tune_missing(with_companions(problems), target, database, mode, minutes)
    result = _measure(problems, target, database, mode, rounds, shared_layout, ragged)
    if json_file:
        write_json(result.to_json(), json_file)
    if json_file != "-":
        _print(result)
    return 0 if any(row.implementation == "wattune" for row in result.rows) else 1


def parse_problems(operator_name: str, shapes: str, fields: Sequence[str]) -> list[Problem]:
    """Read a list of shapes and ``NAME=VALUE`` fields."""
    op = operator(operator_name)
    # Sizes come from the shape; fields are what has a default.
    allowed = [f.name for f in dataclasses.fields(op.problem) if f.default is not MISSING]
    values = dict(_field(text) for text in fields)
    for name in values:
        if name not in allowed:
            raise UnknownNameError(f"field of {operator_name}", name, allowed)
    try:
        return [op.parse_shape(shape, **values) for shape in shapes.split(",")]
    except TypeError as error:
        # Shapes of some operators hold sizes that have a default too.
        raise ProblemError(f"{operator_name}: {error}; is a field part of the shape?") from error


def _field(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ProblemError(f"field {text!r}; allowed: NAME=VALUE, for example dtype=int8")
    return name, _value(value)


def _value(text: str) -> Any:
    """Read true or false, an integer, a number, or else a word."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def tune_missing(
    problems: Sequence[Problem], target: Target, database: str, mode: str, minutes: float
) -> None:
    """Tune what has no records here; without minutes it gets its default schedule."""
    from wattune.compiler.bench.prepare import usable_records
    from wattune.compiler.cli.tune import run_tune

    records = usable_records(problems, target, database, mode)
    missing = [problem for problem in problems if not any(r.valid for r in records[problem])]
    if missing and minutes:
        say(f"tuning {len(missing)} of {len(problems)} problems, {minutes:g} minutes")
        run_tune(missing, target, database, minutes=minutes, mode=mode)


def _measure(
    problems: Sequence[Problem],
    target: Target,
    database: str,
    mode: str,
    rounds: int,
    shared_layout: bool,
    ragged: bool,
) -> BenchResult:
    """Export our kernels and measure all implementations of every problem."""
    from wattune.compiler.bench.ceilings import Ceilings
    from wattune.compiler.bench.machine import describe_machine
    from wattune.compiler.bench.prepare import (
        export_best,
        export_companions,
        usable_records,
        with_companions,
    )
    from wattune.compiler.bench.run import Settings, footprint, measure_problem

    machine = describe_machine(target)
    settings = Settings(
        target.threads, mode, rounds, footprint=footprint(target, mode), ragged=ragged
    )
    rows: list[Row] = []
    notes: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="wattune-bench-") as folder,
        Bar("measuring", len(problems) * rounds) as bar,
    ):
        records = usable_records(with_companions(problems), target, database, mode)
        bar.update(0, "compiling")
        paths = export_best(problems, target, records, Path(folder), shared_layout)
        export_companions(problems, target, records, Path(folder), paths, notes)
        ceilings = Ceilings(target)
        for number, problem in enumerate(problems):
            rows += measure_problem(
                problem,
                paths,
                settings,
                ceilings.at,
                notes,
                partial(_show, bar, number * rounds),
            )
    return BenchResult(tuple(rows), tuple(notes), {**machine, "limits": ceilings.to_json()})


def _show(bar: Bar, start: int, done: int, text: str) -> None:
    bar.update(start + done, text)


def _print(result: BenchResult) -> None:
    """Print one table per problem, then what is absent."""
    columns = ("implementation", ">median", ">least", ">Gop/s", ">GB/s", ">of limit", ">speed")
    for problem in dict.fromkeys(canonical(row.problem) for row in result.rows):
        rows = [row for row in result.rows if canonical(row.problem) == problem]
        first = rows[0]
        requests = " ragged," if first.lengths == "ragged" else ""
        problem_text = f"{problem_from_json(first.problem)},{requests}"
        title = f"{problem_text} {first.mode}, {first.threads} thread(s)"
        cells = [
            (
                row.implementation,
                duration(row.seconds["median"]),
                duration(row.seconds["min"]),
                f"{row.gops:.1f}",
                f"{row.gbps:.1f}",
                f"{row.fraction_of_limit:.2f}",
                f"{first.seconds['median'] / row.seconds['median']:.2f}x",
            )
            for row in rows
        ]
        print_table(columns, cells, title)
        click.echo()
    for note in result.notes:
        click.echo(f"note: {note}")
