"""CUDA C++ to machine code with nvcc."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from wattune.compiler.cc import last_lines
from wattune.compiler.cuda.toolkit import tools
from wattune.errors import BuildError

_FLAGS = ("-O3", "--expt-relaxed-constexpr", "-Xptxas=-v")


class Nvcc:
    """A toolkit's compiler."""

    name = "nvcc"

    def __init__(self, path: Path) -> None:
        """Use the program at ``path``."""
        self.path = path

    @classmethod
    def find(cls) -> Self | None:
        """Return that of CUDA_PATH, the one on PATH, or a package's; None where there is none."""
        found = next(tools("nvcc", "nvidia-cuda-nvcc"), None)
        return None if found is None else cls(found)

    @cached_property
    def version(self) -> str:
        """Return its release, ``13.0.88``."""
        text = self._run(["--version"])
        found = re.search(r"V(\d+\.\d+\.\d+)", text)
        return found[1] if found else text.strip().splitlines()[-1]

    def compile(self, source: str, archs: Sequence[str], flags: Sequence[str]) -> tuple[bytes, str]:
        """Return a cubin for one architecture, a fat binary for more, and the assembler's report.

        Raises `BuildError` with the compiler's last words.
        """
        kind = "-cubin" if len(archs) == 1 else "-fatbin"
        targets = [f"-gencode=arch={a.replace('sm_', 'compute_')},code={a}" for a in archs]
        with tempfile.TemporaryDirectory() as folder:
            unit, made = Path(folder) / "kernels.cu", Path(folder) / "image"
            unit.write_text(source)
            report = self._run([kind, *_FLAGS, *flags, *targets, "-o", str(made), str(unit)])
            return made.read_bytes(), report

    def _run(self, words: Sequence[str]) -> str:
        """Run nvcc; returns both streams, since facts come on the second."""
        environment = {**os.environ, "CUDA_PATH": str(self.path.parent.parent)}
        try:
            done = subprocess.run(
                [str(self.path), *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                env=environment,
            )
        except OSError as error:
            raise BuildError(f"{self.path} did not start: {error}") from error
        if done.returncode:
            raise BuildError(f"nvcc: {last_lines(done.stdout)}")
        return done.stdout
