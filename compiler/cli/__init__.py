"""The command line. ``main`` is the entry point; click and rich are needed only here."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from wattune.errors import BuildError, MeasureError, MissingDependencyError, WattuneError

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 ok, 1 what was asked failed, 2 user error, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run(words)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (WattuneError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, MeasureError | BuildError) else USER_ERROR
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop or 'nothing was left half-written'}", file=sys.stderr)
        return INTERRUPTED


def _run(words: list[str]) -> int:
    try:
        import click

        from wattune.compiler.cli.app import wattune
    except ImportError as error:
        if isinstance(error, WattuneError) or error.name not in ("click", "rich"):
            raise
        raise MissingDependencyError(str(error.name), "the command line") from error
    try:
        status = wattune.main(words, prog_name="wattune", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit:
        # click's answer to a closed pipe.
        raise BrokenPipeError from None
    except click.exceptions.Abort as stop:
        # click turns a KeyboardInterrupt into this; what it said stays in the context.
        raise KeyboardInterrupt(*getattr(stop.__cause__, "args", ())) from None
    except click.ClickException as error:
        error.show()
        return USER_ERROR
    return status if isinstance(status, int) else OK
