"""The emulated CUDA driver: libcuda.so.1 of host memory, which runs kernels on the CPU.

`install` makes it the driver of this process; images come from `image.host_image`. Faults of
kernels become errors of the driver, with what happened in words. x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.emulator.cuda.image import DEVICE, cpp_compiler, device_digest

from wattune.compiler.cc import cache_folder, run

NAME = "libcuda.so.1"
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", f"-Wl,-soname,{NAME}")


@cache
def library() -> Path:
    """Compile the driver at first use; its folder can stand in LD_LIBRARY_PATH of a process."""
    folder = cache_folder() / "cuda-emulator" / f"driver-{device_digest()}"
    path = folder / NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / NAME
            run([cpp_compiler(), *_FLAGS, *sorted(DEVICE.glob("*.cc")), "-o", made])
            os.replace(made, path)
    return path


@cache
def install() -> ctypes.CDLL:
    """Load the driver: whoever opens libcuda.so.1 in this process from now on finds this one."""
    return ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)


@contextmanager
def reversed_order() -> Iterator[None]:
    """Run blocks, warps and lanes backwards meanwhile: what lacks a barrier shows."""
    driver = install()
    driver.emu_reverse(1)
    try:
        yield
    finally:
        driver.emu_reverse(0)
