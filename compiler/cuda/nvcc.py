"""CUDA C++ to machine code with nvcc: cached by source, with the assembler's facts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wattune.compiler.cc import cache_folder, last_lines
from wattune.errors import BuildError, MissingDependencyError

# exp2 of a normal number to 2 ulp, no subnormals: what kernels of this project are written for.
# A kernel that needs more calls a function that says so.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "-Xptxas=-v",
    # Unused variables, and floating constants that are printed in hexadecimal.
    "-diag-suppress=177,550,1046",
)

_ENTRY = re.compile(r"Compiling entry function '(\w+?)(?:_kernel)?' for '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class KernelUsage:
    """What a thread of one kernel uses: registers; bytes of stack, spills and static shared."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Image:
    """Machine code for one or more architectures and what the assembler said of it.

    ``usage`` maps (kernel, architecture); it is empty where the assembler was not asked.
    ``toolkit`` is the release of the compiler.
    """

    data: bytes
    archs: tuple[str, ...]
    usage: dict[tuple[str, str], KernelUsage]
    toolkit: str = ""


@cache
def nvcc() -> Path:
    """Return nvcc: that of CUDA_PATH, the one on PATH, or a wheel's."""
    root = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME")
    found = Path(root) / "bin" / "nvcc" if root else Path(shutil.which("nvcc") or "")
    if found.is_file():
        return found
    if (wheel := _wheel()) is not None:
        return wheel
    raise MissingDependencyError("nvidia-cuda-nvcc", "compiling for CUDA (or a CUDA toolkit)")


def _wheel() -> Path | None:
    """Return the nvcc of an installed ``nvidia-cuda-nvcc`` package."""
    from importlib import metadata

    try:
        files = metadata.files("nvidia-cuda-nvcc") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == "nvcc"), None)


@cache
def nvcc_version() -> str:
    """Return nvcc's release, ``13.0.88``."""
    text = _run([nvcc(), "--version"])
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found[1] if found else text.strip().splitlines()[-1]


def compile_image(source: str, archs: Sequence[str], registers: int = 0) -> Image:
    """Compile one translation unit for these architectures (``sm_90a``).

    The result is a cubin for one and a fat binary for more. ``registers`` caps those of a thread;
    0 lets the assembler choose. Raises `BuildError` with the compiler's last words.
    """
    flags = [*_FLAGS, *([f"--maxrregcount={registers}"] if registers else [])]
    for arch in archs:
        flags += ["-gencode", f"arch={arch.replace('sm_', 'compute_')},code={arch}"]
    text = "\0".join((source, *flags, nvcc_version()))
    path = cache_folder() / "cuda" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.bin"
    log = path.with_suffix(".log")
    if not (path.exists() and log.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "-cubin" if len(archs) == 1 else "-fatbin"
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unit, made = Path(folder) / "kernels.cu", Path(folder) / "image"
            unit.write_text(source)
            report = _run([nvcc(), kind, *flags, "-o", made, unit])
            beside = Path(folder) / "log"
            beside.write_text(report)
            # Written beside and moved: two processes may do this at once.
            os.replace(beside, log)
            os.replace(made, path)
    return Image(path.read_bytes(), tuple(archs), usage_of(log.read_text()), nvcc_version())


def usage_of(report: str) -> dict[tuple[str, str], KernelUsage]:
    """Read what ``ptxas -v`` prints."""
    found: dict[tuple[str, str], KernelUsage] = {}
    key, stack = ("", ""), (0, 0, 0)
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            key, stack = (match[1], match[2]), (0, 0, 0)
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and key[0]:
            shared = _STATIC_SHARED.search(line)
            found[key] = KernelUsage(int(match[1]), *stack, int(shared[1]) if shared else 0)
    return found


def _run(command: Sequence[str | Path]) -> str:
    """Run nvcc; returns both streams, since facts come on the second."""
    words = [str(word) for word in command]
    environment = {**os.environ, "CUDA_PATH": str(nvcc().parent.parent)}
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=environment,
        )
    except OSError as error:
        raise BuildError(f"{words[0]} did not start: {error}") from error
    if done.returncode:
        raise BuildError(f"nvcc: {last_lines(done.stdout)}")
    return done.stdout
