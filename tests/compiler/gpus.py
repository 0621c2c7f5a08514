"""GPUs for tests of libraries where there is none: labelled tensors, drivers that only answer."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.cc import compiler
from wattune.compiler.cuda import device_code

CUDA = 2  # kDLCUDA
_DRIVER = Path(__file__).with_name("fake_driver.c")
_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


class OnGpu:
    """An array of the host that says it is on a GPU, to DLPack."""

    def __init__(self, array: NDArray[Any], device: int = 0) -> None:
        self.array = array
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.array.__dlpack__()
        read = ctypes.pythonapi.PyCapsule_GetPointer
        read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # A DLTensor is first, its device after the data pointer.
        place = (ctypes.c_int32 * 2).from_address(read(capsule, b"dltensor") + 8)
        place[:] = [CUDA, self.device]
        return capsule


def on_gpu(array: NDArray[Any], device: int = 0) -> Any:
    """Return a tensor that shares an array's memory and is labelled as on a GPU."""
    import tvm_ffi

    return tvm_ffi.from_dlpack(OnGpu(array, device))


def aligned(shape: Sequence[int], dtype: str, alignment: int = 64) -> NDArray[Any]:
    """Return zeros at a multiple of ``alignment``."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count].view(dtype).reshape(shape)


def no_image(source: str, archs: Sequence[str], registers: int = 0) -> device_code.Image:
    """Stand in for nvcc: an image that only `fake_driver` takes."""
    return device_code.Image(b"image" * 16, tuple(archs), {}, "13.0.88")


@cache
def fake_driver() -> Path:
    """Return the folder of a libcuda.so.1 that answers as the environment says."""
    folder = Path(_folder.name)
    flags = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler(), *flags, _DRIVER, "-o", folder / "libcuda.so.1"], check=True)
    return folder


def run_script(code: str, driver: Path | None, **environment: object) -> list[str]:
    """Run a script in a process of its own, without torch; returns the lines it prints.

    ``driver`` is the folder of a libcuda.so.1, None for a machine without one.
    """
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    found.update({name: str(value) for name, value in environment.items()})
    found["LD_LIBRARY_PATH"] = str(driver or "")
    command = [sys.executable, "-c", "import sys\nsys.modules['torch'] = None\n" + code]
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
