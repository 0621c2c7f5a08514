"""Machine code of CUDA C++, by the compiler at hand: cached, with the assembler's facts."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from wattune.compiler.cc import cache_folder
from wattune.compiler.cuda.nvcc import Nvcc
from wattune.compiler.cuda.nvrtc import Nvrtc
from wattune.errors import MissingDependencyError

# exp2 of a normal number to 2 ulp, no subnormals: what kernels of this project are written for.
# A kernel that needs more calls a function that says so.
_FLAGS = (
    "-std=c++17",
    "--use_fast_math",
    # Unused variables, and floating constants that are printed in hexadecimal.
    "-diag-suppress=177,550,1046",
)

_ENTRY = re.compile(r"Compiling entry function '(\w+?)(?:_kernel)?' for '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..." and
# its like: they come before the kernels of their architecture. Others of these numbers, about
# setmaxnreg, say nothing of products.
_SERIALIZED = re.compile(
    r"\(C75\d\d\).*(?:gmma|warpgroup).*function '(\w+?)(?:_kernel)?'", re.IGNORECASE
)


class DeviceCompiler(Protocol):
    """Compiles one translation unit for GPUs."""

    name: str

    @property
    def version(self) -> str:
        """Return its release."""

    def compile(self, source: str, archs: Sequence[str], flags: Sequence[str]) -> tuple[bytes, str]:
        """Return machine code and what ``ptxas -v`` printed."""


@dataclass(frozen=True)
class KernelUsage:
    """What a thread of one kernel uses: registers; bytes of stack, spills and static shared.

    ``serialized``: how often the assembler says that it waits between products of warpgroups.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    serialized: int = 0


NOTHING_KNOWN = KernelUsage(0, 0, 0, 0, 0)


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
def device_compiler() -> DeviceCompiler:
    """Return nvcc, or NVRTC where that is all there is: it makes the same code, for one GPU."""
    found = Nvcc.find() or Nvrtc.find()
    if found is None:
        raise MissingDependencyError(
            "nvidia-cuda-nvcc (or a CUDA toolkit in CUDA_PATH)", "compiling for CUDA", "cuda"
        )
    return found


def compile_image(source: str, archs: Sequence[str], registers: int = 0) -> Image:
    """Compile one translation unit for these architectures (``sm_90a``).

    The result is a cubin for one and a fat binary for more. ``registers`` caps those of a thread;
    0 lets the assembler choose. Raises `BuildError` with the compiler's last words.
    """
    compiler = device_compiler()
    flags = [*_FLAGS, *([f"--maxrregcount={registers}"] if registers else [])]
    text = "\0".join((source, *flags, *archs, compiler.name, compiler.version))
    path = cache_folder() / "cuda" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.bin"
    log = path.with_suffix(".log")
    if not (path.exists() and log.exists()):
        data, report = compiler.compile(source, archs, flags)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(log, report.encode())
        _write(path, data)
    usage = usage_of(log.read_text())
    return Image(path.read_bytes(), tuple(archs), usage, compiler.version)


def _write(path: Path, data: bytes) -> None:
    """Write beside and move: two processes may do this at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as beside:
        beside.write(data)
    os.replace(beside.name, path)


def usage_of(report: str) -> dict[tuple[str, str], KernelUsage]:
    """Read what ``ptxas -v`` prints."""
    found: dict[tuple[str, str], KernelUsage] = {}
    key, stack, serialized = ("", ""), (0, 0, 0), 0
    # Remarks by kernel whose architecture is not known yet: it is that of its next entry.
    remarks: Counter[str] = Counter()
    for line in report.splitlines():
        if match := _SERIALIZED.search(line):
            remarks[match[1]] += 1
        elif match := _ENTRY.search(line):
            key, stack, serialized = (match[1], match[2]), (0, 0, 0), remarks.pop(match[1], 0)
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and key[0]:
            shared = _STATIC_SHARED.search(line)
            static = int(shared[1]) if shared else 0
            found[key] = KernelUsage(int(match[1]), *stack, static, serialized)
    return found
