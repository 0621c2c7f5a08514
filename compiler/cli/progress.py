"""Progress on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from wattune.compiler.cli.output import console, say

# A terminal narrower than this gets the numbers without the bar.
NARROW = 72
SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """One bar with a count and a text; `update` may be called as often as one likes."""

    def __init__(self, name: str, total: int | None = None) -> None:
        """``total`` is the last count, or None where only the time is known."""
        self.name, self.total = name, total
        self._console = console(stderr=True)
        self._last = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._console.is_terminal:
            self._progress = Progress(
                *self._columns(), console=self._console, transient=True, expand=True
            )
            self._progress.start()
            self._task = self._progress.add_task(self.name, total=self.total, text="", shown="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()

    def update(self, count: int, text: str = "", shown: str | None = None) -> None:
        """Set the count and the text beside it; ``shown`` stands for the count where given."""
        if shown is None:
            shown = f"{count}/{self.total}" if self.total else str(count)
        if self._progress:
            self._progress.update(self._task, completed=count, text=text, shown=shown)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(f"{self.name}: {shown} {text}".rstrip())

    def _columns(self) -> tuple[ProgressColumn, ...]:
        """Return the columns; where there is little room the text is cut, not the numbers."""
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        narrow = (
            TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[text]}", table_column=rest, markup=False),
        )
        if self._console.width < NARROW:
            return narrow
        return (TextColumn("{task.description}"), BarColumn(20), *narrow)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show a spinner while something of unknown length runs; silent where there is no terminal."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield
        return
    with out.status(text):
        yield
