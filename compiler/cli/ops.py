"""``wattune ops``: operators, formats and templates."""

from __future__ import annotations

from typing import Any

import click

from wattune.compiler.cli.options import json_option, target_options
from wattune.compiler.cli.output import print_json, print_table
from wattune.errors import ScheduleError
from wattune.ops import operator, operator_names
from wattune.schedules.target import Target


@click.command("ops")
@target_options
@json_option
def ops_command(target: str, threads: int | None, as_json: bool) -> None:
    """List operators, their formats and the templates that serve them on a target."""
    where = Target.parse(target, threads)
    found = [_describe(name, where) for name in operator_names()]
    if as_json:
        print_json({"target": where.to_json(), "operators": found})
        return
    for op in found:
        click.echo(f"{op['name']}: {op['summary']}")
        formats = [(name, f"{bits:.3f}") for name, bits in op["formats"].items()]
        print_table(("  format", ">bits per value"), [(f"  {n}", b) for n, b in formats])
        rows = [(f"  {t['name']}", t["format"], ", ".join(t["serves"])) for t in op["templates"]]
        print_table(("  template", "format", "serves, for example"), rows)
        if not rows:
            click.echo(f"  no template serves {where.kind}:{where.arch}")


def _describe(name: str, target: Target) -> dict[str, Any]:
    op = operator(name)
    return {
        "name": name,
        "summary": op.summary,
        "arguments": list(op.signature),
        "formats": op.formats(),
        "templates": _templates(name, target),
    }


def _templates(name: str, target: Target) -> list[dict[str, Any]]:
    """Return the applicable templates with the example problems that each serves."""
    from wattune.compiler.build import keep_torch_out, prepare_tvm
    from wattune.schedules.template import templates_for

    keep_torch_out()
    prepare_tvm()
    found: dict[str, dict[str, Any]] = {}
    for problem in operator(name).examples():
        try:
            templates = templates_for(problem, target)
        except ScheduleError:
            continue
        for template in templates:
            values = template.space(problem, target).default()
            layout = template.layout(problem, values)
            entry = found.setdefault(
                template.name, {"name": template.name, "format": layout.format, "serves": []}
            )
            entry["serves"].append(str(problem))
    return list(found.values())
