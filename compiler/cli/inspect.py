"""``wattune inspect``: what a library, a database or a file of packed weights holds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wattune.compiler.cli.options import json_option
from wattune.compiler.cli.output import duration, print_json, print_table
from wattune.compiler.library.manifest import Manifest
from wattune.errors import UnknownNameError
from wattune.ops import Problem, operator, problem_from_json
from wattune.schedules.candidate import FAILURE_KINDS, Record

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]


@click.command("inspect")
@click.argument("file")
@json_option
def inspect_command(file: str, as_json: bool) -> None:
    """Show what FILE holds: a library (.so), a database (.sqlite) or packed weights."""
    data, tables = _READERS[_kind(file)](file)
    if as_json:
        print_json({"file": file, "kind": _kind(file), **data})
        return
    for title, columns, rows in tables:
        print_table(columns, rows, title)
        click.echo()


def _kind(file: str) -> str:
    """Tell the kind from the first bytes: names can be anything."""
    with Path(file).open("rb") as opened:
        head = opened.read(16)
    if head.startswith(b"\x7fELF"):
        return "library"
    if head.startswith(b"SQLite format 3"):
        return "database"
    if head[8:9] == b"{":
        return "packed weights"
    raise UnknownNameError("kind of file", file, ("a library", "a database", "packed weights"))


def _library(file: str) -> tuple[dict[str, Any], list[Table]]:
    from wattune.compiler.library.loader import read_manifest

    manifest = read_manifest(file)
    kernels = [
        (
            str(problem_from_json({**variant.problem, **kernel.upper, "operator": op.name})),
            kernel.template,
            variant.layout,
            "-" if kernel.seconds is None else duration(kernel.seconds),
            "yes" if kernel.verified else "no",
        )
        for op in manifest.operators
        for variant in op.variants
        for kernel in variant.kernels
    ]
    facts = [
        ("wattune", manifest.wattune),
        ("ABI", manifest.abi),
        *_target_facts(manifest),
        ("verified", "yes" if manifest.verified else "no"),
    ]
    columns = ("kernel, up to", "template", "layout", ">measured", "verified")
    return dataclasses.asdict(manifest), [("", ("library", file), facts), ("", columns, kernels)]


def _target_facts(manifest: Manifest) -> list[tuple[str, object]]:
    target = manifest.target
    if manifest.archs:
        return [("target", f"cuda {target['arch']}"), ("GPU code for", " ".join(manifest.archs))]
    return [
        ("target", f"{target['kind']} {target['arch']}, {target['threads']} threads"),
        ("features", " ".join(target["features"]) or "none"),
    ]


def _database(file: str) -> tuple[dict[str, Any], list[Table]]:
    from wattune.compiler.database import Database

    with Database(file, create=False, read_only=True) as db:
        records = db.records()
    groups: dict[tuple[Problem, str, str, int], list[Record]] = {}
    for record in records:
        candidate = record.candidate
        where = f"{candidate.target.kind} {candidate.target.arch} {record.provenance.fingerprint}"
        key = (candidate.problem, where, record.conditions.mode, candidate.target.threads)
        groups.setdefault(key, []).append(record)
    found = [_group(key, group) for key, group in groups.items()]
    rows = [
        (
            str(problem),
            entry["mode"],
            entry["threads"],
            entry["records"],
            entry["failures"],
            "-" if entry["best_seconds"] is None else duration(entry["best_seconds"]),
            "-" if entry["gops"] is None else f"{entry['gops']:.0f}",
            "-" if entry["schedule"] is None else entry["schedule"]["template"],
        )
        for (problem, *_), entry in zip(groups, found, strict=True)
    ]
    machines = Counter(record.provenance.fingerprint for record in records)
    kinds = Counter(str(record.failure) for record in records if record.failure)
    failures = [(kind.replace("_", " "), kinds[kind]) for kind in FAILURE_KINDS if kinds[kind]]
    names = (">threads", ">records", ">failures", ">best", ">Gop/s", "template")
    tables: list[Table] = [("", ("problem", "mode", *names), rows)]
    tables.append(("", ("machine", ">records"), list(machines.items())))
    if failures:
        tables.append(("", ("failure", ">records"), failures))
    data = {"records": len(records), "machines": dict(machines), "problems": found}
    return {**data, "failures": dict(kinds)}, tables


def _group(key: tuple[Problem, str, str, int], records: Sequence[Record]) -> dict[str, Any]:
    problem, where, mode, threads = key
    valid = [record for record in records if record.valid]
    best = min(valid, key=lambda record: record.latency, default=None)
    operations = operator(problem.operator).work(problem).operations
    return {
        "problem": problem.to_json(),
        "where": where,
        "mode": mode,
        "threads": threads,
        "records": len(records),
        "failures": len(records) - len(valid),
        "best_seconds": best and best.latency,
        "gops": best and operations / best.latency / 1e9,
        "schedule": best and best.candidate.schedule.to_json(),
    }


def _packed(file: str) -> tuple[dict[str, Any], list[Table]]:
    from wattune.compiler.library.packed import load_packed

    layers = {
        name or "(one layer)": {
            "operator": packed.operator,
            "layout": packed.layout,
            "fields": dict(packed.fields),
            "bytes": packed.nbytes,
        }
        for name, packed in load_packed(file).items()
    }
    rows = [
        (name, entry["operator"], json.dumps(entry["fields"]), entry["layout"], entry["bytes"])
        for name, entry in layers.items()
    ]
    return {"layers": layers}, [("", ("layer", "operator", "fields", "layout", ">bytes"), rows)]


_READERS = {"library": _library, "database": _database, "packed weights": _packed}
