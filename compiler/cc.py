"""The system's C compiler: our few C sources are compiled once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from wattune.errors import BuildError

REASON_LINES = 3
REASON_LENGTH = 400


def last_lines(text: str) -> str:
    """Return the end of a long message as one short line: compilers put the reason last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-REASON_LINES:])[-REASON_LENGTH:]


@cache
def compiler() -> str:
    """Return the path of the C compiler; gcc first, whose OpenMP runtime torch shares."""
    for name in (os.environ.get("CC", ""), "gcc", "cc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("no C compiler found; install gcc, or set CC to one")


def run(command: Sequence[str | Path]) -> str:
    """Run a tool of the C toolchain and return what it printed; a failure is a `BuildError`."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{words[0]} did not start: {error}") from error
    if done.returncode:
        raise BuildError(f"{Path(words[0]).name}: {last_lines(done.stderr or done.stdout)}")
    return done.stdout


@cache
def cache_folder() -> Path:
    """Return the folder for compiled helpers: the user's cache, or a temporary one without it."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(root) if root else Path.home() / ".cache") / "wattune"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # the latter where there is no home
        return Path(tempfile.mkdtemp(prefix="wattune-"))


@cache
def cached(source: Path, flags: tuple[str, ...], suffix: str) -> Path:
    """Compile one C file, or find what an earlier process compiled; ``suffix`` .o or .so.

    The name digests source, flags and compiler, so that a stale file is never found. A bundle
    has what it needs compiled beside its source: there may be no compiler where it runs.
    """
    if (made := source.with_name(source.name + suffix)).exists():
        return made
    kind = ("-c",) if suffix == ".o" else ("-shared",)
    version = run([compiler(), "-dumpfullversion", "-dumpmachine"])
    parts = (source.read_text(), *flags, suffix, compiler(), version)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / f"{source.stem}-{digest}{suffix}"
    if not path.exists():
        # Compiled beside and moved: two processes may do this at once.
        beside = path.with_name(f".{os.getpid()}-{path.name}")
        run([compiler(), "-O2", "-fPIC", *kind, source, *flags, "-o", beside])
        os.replace(beside, path)
    return path
