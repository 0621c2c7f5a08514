"""``wattune ops``: operators, formats and templates."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from wattune.compiler.cli.options import json_option, target_options
from wattune.compiler.cli.output import console, print_json
from wattune.errors import ScheduleError
from wattune.ops import operator, operator_names
from wattune.schedules.target import Target

WIDEST = 100


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
    width = min(console().width, WIDEST)
    click.echo("\n\n".join(_paragraph(op, where, width) for op in found))


def _paragraph(op: dict[str, Any], target: Target, width: int) -> str:
    """Write an operator's summary, its formats, and the templates by what they serve."""
    lines = [op["name"], *_filled(f"  {op['summary']}", "  ", width)]
    if op["formats"]:
        formats = ", ".join(f"{name} {bits:.4g}" for name, bits in op["formats"].items())
        lines += _filled(f"  bits per value: {formats}", "    ", width)
    served: dict[tuple[str, ...], list[str]] = {}
    for template in op["templates"]:
        # The name of the operator says nothing new here.
        problems = tuple(text.removeprefix(op["name"]).strip() for text in template["serves"])
        served.setdefault(problems, []).append(template["name"])
    for problems, names in served.items():
        lines += _filled(f"  {', '.join(names)}", "    ", width)
        lines += _filled(f"    serve {'; '.join(problems)}", "      ", width)
    if not served:
        lines.append(f"  no template serves {target.kind}:{target.arch}")
    return "\n".join(lines)


def _filled(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


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
    from wattune.compiler.tvm_setup import keep_torch_out, prepare_tvm
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
