"""Brings our own kernels to a benchmark: finds the best records, exports libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wattune.compiler.bench.implementations import companions
from wattune.compiler.database import Database
from wattune.compiler.library.choose import verify
from wattune.compiler.library.package import build
from wattune.compiler.library.plan import Choice
from wattune.compiler.objective import parse_objective
from wattune.compiler.search.groups import weights_of
from wattune.compiler.search.standings import eligible
from wattune.compiler.select import select_from
from wattune.errors import WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Record
from wattune.schedules.host import fingerprint
from wattune.schedules.target import Target

Records = Mapping[Problem, Sequence[Record]]


def with_companions(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems and, after them, our own ones that are measured beside them."""
    others = [other for problem in problems for other in companions(problem).values()]
    return list(dict.fromkeys([*problems, *others]))


def usable_records(
    problems: Sequence[Problem], target: Target, database: str | Path, mode: str
) -> Records:
    """Return this machine's records of each problem in this mode; none without a database."""
    if not Path(database).exists():
        return dict.fromkeys(problems, ())
    here = fingerprint(target)
    with Database(database, create=False, read_only=True) as db:
        return {
            problem: [r for r in db.records(problem, target, here, mode) if eligible(r)]
            for problem in problems
        }


def export_best(
    problems: Sequence[Problem],
    target: Target,
    records: Records,
    folder: Path,
    shared_layout: bool = False,
) -> dict[Problem, Path]:
    """Export the best kernel of each problem; a problem without records gets its default.

    Problems are compiled apart, so that each has its own best layout; with ``shared_layout`` they
    are one library, in which problems that share data share its layout.
    """
    parts = [list(problems)] if shared_layout else [[problem] for problem in problems]
    paths: dict[Problem, Path] = {}
    for number, part in enumerate(parts):
        found = select_from(
            part, target, records, parse_objective("latency"), weights_of(part, None)
        )
        choices = [Choice(found[problem].candidate, found[problem].record) for problem in part]
        library = build(verify(choices, target, allow_unverified=False), target)
        path = library.export(folder / f"kernels{number}.so")
        paths.update(dict.fromkeys(part, path))
    return paths


def export_companions(
    problems: Sequence[Problem],
    target: Target,
    records: Records,
    folder: Path,
    paths: dict[Problem, Path],
    notes: list[str],
) -> None:
    """Export the companions that are not among the problems; what has no kernels leaves a note."""
    for problem in with_companions(problems):
        if problem in paths:
            continue
        part = folder / f"companion{len(paths)}"
        part.mkdir()
        try:
            paths.update(export_best([problem], target, records, part))
        except WattuneError as error:
            notes.append(f"{problem} is not measured beside the others: {error}")
