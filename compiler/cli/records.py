"""``wattune export-records`` and ``import-records``: databases of a team merge through text."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from wattune.compiler.cli.options import database_option, json_option
from wattune.compiler.cli.output import print_json, say
from wattune.errors import DatabaseError


@click.command("export-records")
@database_option
@click.option("-o", "--output", default="-", show_default=True, help="File; - is standard output.")
def export_records_command(database: str, output: str) -> None:
    """Write all records as JSON lines."""
    from wattune.compiler.database import Database

    existing(database)
    count = 0
    with (
        Database(database) as db,
        nullcontext(sys.stdout) if output == "-" else Path(output).open("w") as file,
    ):
        for line in db.export_lines():
            file.write(line.rstrip("\n") + "\n")
            count += 1
    say(f"{count} records exported from {database}")


@click.command("import-records")
@click.argument("files", nargs=-1, required=True, type=str)
@database_option
@json_option
def import_records_command(files: tuple[str, ...], database: str, as_json: bool) -> None:
    """Add the records of JSON-lines FILES (- is standard input); known ones are skipped."""
    from wattune.compiler.database import Database

    added = skipped = 0
    with Database(database) as db:
        for name in files:
            with nullcontext(sys.stdin) if name == "-" else Path(name).open() as file:
                report = db.import_lines(file)
            added, skipped = added + report.added, skipped + report.skipped
    if as_json:
        print_json({"added": added, "skipped": skipped})
    else:
        say(f"{added} records added to {database}, {skipped} were known")


def existing(database: str) -> None:
    """Refuse a database that is not there: opening it would make an empty one."""
    if not Path(database).exists():
        raise DatabaseError(f"{database}: no such database; --db names another one")
