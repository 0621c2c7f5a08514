"""CUDA C++ to machine code with NVRTC, a library: for machines that have it and no nvcc.

The packages nvidia-cuda-nvrtc, nvidia-cuda-runtime and nvidia-cuda-cccl have all that it needs;
torch for CUDA brings the first two.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from wattune.compiler.cc import last_lines
from wattune.compiler.cuda.toolkit import packaged
from wattune.errors import BuildError

PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl")


class Nvrtc:
    """The run-time compiler."""

    name = "nvrtc"

    def __init__(self, library: Path, includes: Sequence[Path]) -> None:
        """Open the library; ``includes`` are the folders of headers."""
        # It looks for its builtins by name only.
        for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))
        self._includes = [f"--include-path={folder}" for folder in includes]

    @classmethod
    def find(cls) -> Self | None:
        """Return that of installed packages; None where one of them is missing."""
        library = next(packaged(PACKAGES[0], "libnvrtc.so.*"), None)
        half = next(packaged(PACKAGES[1], "include/cuda_fp16.h"), None)
        standard = next(packaged(PACKAGES[2], "include/cccl/nv/target"), None)
        if library is None or half is None or standard is None:
            return None
        return cls(library, (half.parent, standard.parent.parent))

    @property
    def version(self) -> str:
        """Return its release, ``13.0``."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def compile(self, source: str, archs: Sequence[str], flags: Sequence[str]) -> tuple[bytes, str]:
        """Return a cubin and the assembler's report.

        Raises `BuildError` with the compiler's last words, and for several architectures: NVRTC
        makes no fat binaries.
        """
        if len(archs) > 1:
            raise BuildError(
                f"NVRTC compiles for one GPU architecture, not for {', '.join(archs)}; install "
                "nvidia-cuda-nvcc (pip install 'wattune[cuda]'), or compile a library for each"
            )
        # Images have a cache of ours; that of NVRTC asks the driver for one.
        fixed = ("--ptxas-options=-v", "--no-cache")
        options = [f"--gpu-architecture={archs[0]}", *fixed, *self._includes, *flags]
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
        try:
            failed = self._library.nvrtcCompileProgram(program, len(options), words)
            report = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if failed:
                raise BuildError(f"NVRTC: {last_lines(report) or self._words(failed)}")
            return self._read(program, "CUBIN"), report
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, data)
        return data.raw

    def _call(self, name: str, *arguments: object) -> None:
        if status := self._library[f"nvrtc{name}"](*arguments):
            raise BuildError(f"NVRTC: {name}: {self._words(status)}")

    def _words(self, status: int) -> str:
        describe = self._library.nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        return str(describe(status).decode())
