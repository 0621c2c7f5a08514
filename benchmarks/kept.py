"""Kernels of benchmarks, compiled once: kept in a folder by what they are made of.

Compilers do not disturb what is timed later when all kernels are compiled before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattune.ops import Problem
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template


@dataclass(frozen=True)
class Kept:
    """The folder; kernels are named by their operator or phase, with a digest of all else."""

    folder: Path

    def path(
        self,
        name: str,
        template: Template,
        problem: Problem,
        target: Target,
        values: Mapping[str, Value],
        lower: Callable[[], Any],
    ) -> Path:
        """Return the library of a kernel, whose function is ``main``; compile it if it is new."""
        made_by = [template.source_hash(), target.to_json(), problem.to_json(), dict(values)]
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        found = self.folder / f"{name}-{digest}.so"
        if not found.exists():
            import tvm

            module = tvm.IRModule({"main": lower().with_attr("global_symbol", "main")})
            # One that was interrupted is no kernel.
            new = found.with_stem(f"{found.stem}-new")
            tvm.tirx.build(module, tvm.target.Target(target.llvm())).export_library(str(new))
            new.rename(found)
        return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where kernels are kept, and that nothing is measured."""
    parser.add_argument("--folder", type=Path, help="where kernels are kept")
    parser.add_argument("--compile", action="store_true", help="measure nothing")


@contextmanager
def kept_in(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[Kept]:
    """Yield the folder, one that is removed where none is named."""
    if options.compile and not options.folder:
        parser.error("--compile needs --folder, where the kernels are kept")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield Kept(folder)
