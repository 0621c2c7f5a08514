"""``wattune export-records`` and ``import-records``: databases of a team merge through text."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from wattune.compiler.cli.options import database_option, json_option
from wattune.compiler.cli.output import print_json, say
from wattune.compiler.database import Database, ImportReport
from wattune.errors import RecordError


@click.command("export-records")
@database_option
@click.option("-o", "--output", default="-", show_default=True, help="File; - is standard output.")
def export_records_command(database: str, output: str) -> None:
    """Write all records as JSON lines."""
    count = 0
    with (
        Database(database, create=False, read_only=True) as db,
        nullcontext(sys.stdout) if output == "-" else Path(output).open("w") as file,
    ):
        for line in db.export_lines():
            file.write(line + "\n")
            count += 1
    say(f"{count} records exported from {database}")


@click.command("import-records")
@click.argument("files", nargs=-1, required=True)
@database_option
@click.option("--skip-bad", is_flag=True, help="Leave wrong lines out instead of stopping.")
@json_option
def import_records_command(
    files: tuple[str, ...], database: str, skip_bad: bool, as_json: bool
) -> None:
    """Add the records of JSON-lines FILES (- is standard input); known ones are skipped."""
    with Database(database) as db:
        reports = [(name, _import(db, name, skip_bad)) for name in files]
    added = sum(report.added for _, report in reports)
    skipped = sum(report.skipped for _, report in reports)
    refused = [f"{name}: {line}" for name, report in reports for line in report.refused]
    if as_json:
        print_json({"added": added, "skipped": skipped, "refused": refused})
        return
    for line in refused:
        say(f"left out: {line}")
    say(f"{added} records added to {database}, {skipped} were known")


def _import(db: Database, name: str, skip_bad: bool) -> ImportReport:
    try:
        with nullcontext(sys.stdin) if name == "-" else Path(name).open() as file:
            return db.import_lines(file, skip_bad)
    except RecordError as error:
        raise RecordError(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{name}: not text: {error}; nothing was imported") from error
