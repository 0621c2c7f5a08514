"""What commands print: tables for people, JSON for programs, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Where nothing tells the width (a pipe, a file), wide enough that no cell is cut.
PIPE_WIDTH = 200


def console(stderr: bool = False) -> Console:
    """Return a console on standard output or error, wide where it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """Print one line for people, on standard error: standard output is for results."""
    console(stderr=True).print(text, markup=False)


def print_json(data: Any) -> None:
    """Print machine-readable results on standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def write_json(data: Any, path: str) -> None:
    """Write machine-readable results to a file; ``-`` is standard output."""
    if path == "-":
        print_json(data)
    else:
        Path(path).write_text(json.dumps(data, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table; columns whose name starts with ``>`` are right-aligned.

    Where the terminal is too narrow for it, each row becomes a few lines.
    """
    out = console()
    cells = [[str(cell) for cell in row] for row in rows]
    names = [name.lstrip(">").strip() for name in columns]
    if out.is_terminal and _width(columns, cells) > out.width:
        out.print(_blocks(names, cells, title), markup=False)
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    out.print(table, markup=False)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the characters that a line of the table takes."""
    lines = [list(columns), *rows]
    return sum(max(len(line[at]) for line in lines) + 2 for at in range(len(columns)))


def _blocks(names: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """Return a paragraph for each row: its first cell, then the others with their names."""
    lines = [title] if title else []
    for row in rows:
        pairs = [f"{name} {cell}" for name, cell in zip(names[1:], row[1:], strict=True)]
        lines += [row[0], f"  {', '.join(pairs)}"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Write seconds as people read them: ns, us, ms, s or minutes."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
