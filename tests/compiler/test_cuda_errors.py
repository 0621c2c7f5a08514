"""Libraries for GPUs on machines that cannot run them: each a clear message."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import tvm_ffi
from tests.compiler.gpus import fake_driver, no_image, run_script
from tests.compiler.toy_gpu import Ragged, export_toy

from wattune.compiler.cuda import device_code
from wattune.compiler.library.loader import read_manifest
from wattune.errors import TargetError
from wattune.schedules.target import Target

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")

LOAD = """
from wattune.compiler.library.loader import load
from wattune.errors import WattuneError
try:
    print(sorted(load({paths!r}).manifests))
except WattuneError as error:
    print(type(error).__name__, error)
"""

CALL = """
import numpy as np, tvm_ffi
from tests.compiler.gpus import aligned, on_gpu
from wattune.compiler.library.loader import load
from wattune.errors import WattuneError
entry = load({path!r}).ragged
def call(device=0):
    x = on_gpu(aligned((2, 8), "float32"), device)
    lengths = on_gpu(aligned((2,), "int32"), device)
    out = [on_gpu(aligned((2, 8), "float32"), device), on_gpu(aligned((2, 2), "int32"), device)]
    scratch = on_gpu(aligned((entry.workspace_bytes,), "uint8"), device)
    try:
        entry(x, lengths, factor={factor}, out=out, workspace=scratch)
    except WattuneError as error:
        print(type(error).__name__, error)
"""


# Of the library: how each is launched on a device that can start one before the last has ended.
KERNELS = {"factors_kernel": "", "scale_kernel": " early"}


@cache
def exported(arch: str = "sm_90a", also: tuple[str, ...] = ()) -> Path:
    """Return a library whose code only the fake driver takes."""
    path = Path(_folder.name) / f"{arch}{len(also)}.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_code, "compile_image", no_image)
        problems = (Ragged(2, 64), Ragged(2, 64, factor=3.0))
        return export_toy(path, problems[: 2 - len(also)], Target.parse(f"cuda:{arch}"), also)


def load_lines(*paths: Path, **environment: object) -> str:
    code = LOAD.format(paths=[str(path) for path in paths])
    return "\n".join(run_script(code, fake_driver(), **environment))


def call_lines(path: Path, more: str, factor: float = 2.0, **environment: object) -> list[str]:
    code = CALL.format(path=str(path), factor=factor) + more
    return run_script(code, fake_driver(), **environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAKE_INIT": 100}, r"needs a GPU: cuInit: CUDA_ERROR_NO_DEVICE \(100\): words of the"),
        ({"FAKE_INIT": 999}, r"a GPU: cuInit: unknown CUDA error \(999\): the driver does not"),
        ({"FAKE_DEVICES": 0}, "needs a GPU: the driver has no device"),
        ({"FAKE_MAJOR": 8}, "needs a GPU of sm_90a; here is sm_80"),
        ({"FAKE_MINOR": 3}, "needs a GPU of sm_90a; here is sm_93"),
    ],
)
def test_load_says_what_the_machine_lacks(environment: dict[str, int], message: str) -> None:
    text = load_lines(exported(), **environment)
    assert text.startswith("LibraryError this machine cannot run the kernels: ")
    assert re.search(message, text), text


def test_no_driver() -> None:
    (text,) = run_script(LOAD.format(paths=[str(exported())]), None)
    assert "sm_90a0.so needs an NVIDIA driver: libcuda.so.1 cannot be opened; compile for" in text
    assert read_manifest(exported()).archs == ("sm_90a",), "it can be inspected all the same"


def test_an_old_driver(tmp_path: Path) -> None:
    """One that lacks a function."""
    source = tmp_path / "old.c"
    source.write_text("int cuInit(unsigned flags) { return flags; }\n")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    (line,) = run_script(LOAD.format(paths=[str(exported())]), tmp_path)
    assert "a newer NVIDIA driver: this one has no cuDriverGetVersion" in line


def test_load_takes_those_of_a_list_that_run_here() -> None:
    ampere, hopper = exported("sm_80"), exported()
    assert load_lines(ampere, hopper) == str([str(hopper)])
    assert load_lines(ampere, hopper, FAKE_MAJOR=8, FAKE_MINOR=6) == str([str(ampere)])
    both = exported(also=("sm_80",))
    for major in (8, 9):
        assert load_lines(both, FAKE_MAJOR=major) == str([str(both)])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"FAKE_LOAD": 2},
            "device 0 has no memory left for the GPU code of this library",
        ),
        (
            {"FAKE_LOAD": 222, "FAKE_VERSION": 12080},
            "the driver is too old: it supports CUDA 12.8, this library's GPU code was made by "
            "CUDA 13.0: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222): words of the driver",
        ),
        (
            {"FAKE_LOAD": 209},
            "loading GPU code: CUDA_ERROR_NO_BINARY_FOR_GPU (209): words of the driver",
        ),
        (
            {"FAKE_LAUNCH": 2},
            "factors_kernel: CUDA_ERROR_OUT_OF_MEMORY (2): words of the driver",
        ),
    ],
)
def test_a_call_that_fails(environment: dict[str, int], message: str) -> None:
    lines = call_lines(exported(), "call()", **environment)
    assert lines[-1] == f"DeviceError ragged: {message}"


def test_a_device_that_cannot_run_the_code() -> None:
    """Where another device could, so that the library was loaded."""
    more = "import os\nos.environ['FAKE_MAJOR'] = '8'\ncall()"
    lines = call_lines(exported(), more, FAKE_LOAD=209)
    assert lines[-1] == (
        "DeviceError ragged: device 0 cannot run this library, which holds GPU code for sm_90a: "
        "CUDA_ERROR_NO_BINARY_FOR_GPU (209): words of the driver"
    )


def test_shared_memory_that_a_device_does_not_give() -> None:
    lines = call_lines(exported(), "call()", 3.0, FAKE_SHARED=1)
    assert lines[-1] == (
        "DeviceError ragged: scale_kernel: the device does not give a block 131072 bytes of "
        "shared memory"
    )


def test_devices_and_streams() -> None:
    """Tensors say which device, tvm-ffi's context which stream; code is loaded once a device."""
    more = """
call(); call(1)
with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:1"), 4660):
    call(1); call(0)
call(99)
"""
    assert call_lines(exported(), more) == [
        "load on 0",
        *(f"{kernel} of 2 on 0 stream 0{how}" for kernel, how in KERNELS.items()),
        "load on 1",
        *(f"{kernel} of 2 on 1 stream 0{how}" for kernel, how in KERNELS.items()),
        *(f"{kernel} of 2 on 1 stream 4660{how}" for kernel, how in KERNELS.items()),
        *(f"{kernel} of 2 on 0 stream 0{how}" for kernel, how in KERNELS.items()),
        "DeviceError ragged: device 99; allowed: 0 to 15",
    ]


def test_kernels_start_early_only_where_they_can() -> None:
    """One library for both: the same launch is an ordinary one on an older GPU."""
    both = exported(also=("sm_80",))
    for major, how in ((8, ""), (9, " early")):
        lines = call_lines(both, "call()", FAKE_MAJOR=major)
        assert lines[1:] == [
            "factors_kernel of 2 on 0 stream 0",
            f"scale_kernel of 2 on 0 stream 0{how}",
        ]


def test_schedules_that_another_architecture_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"for sm_90a is none for sm_89.*cuda:sm_89 of its own"):
        export_toy(tmp_path / "k.so", (Ragged(2, 64, factor=3.0),), also=("sm_89",), ask=True)


def test_a_program_in_c(tmp_path: Path) -> None:
    """Devices, streams and bounds through the header; a machine without a GPU is told of."""
    path, ffi = tmp_path / "kernels.so", Path(tvm_ffi.libinfo.find_libtvm_ffi())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_code, "compile_image", no_image)
        export_toy(path)
    source, program = Path(__file__).with_name("gpu_call.c"), tmp_path / "call"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}"]
    paths = [f"-Wl,-rpath,{tmp_path}", f"-Wl,-rpath,{ffi.parent}"]
    subprocess.run(["gcc", *flags, source, path, ffi, *paths, "-o", program], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake_driver())}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "check 0",
        "load on 1",
        "factors_kernel of 3 on 1 stream 4660",
        "scale_kernel of 3 on 1 stream 4660 early",
        "call 0",
        "call -1",
        "ragged: workspace is missing; expected 64 bytes on the device",
        "call -1",
        "ragged: length is at most -1; allowed: 1 or more, 0 where it is not known",
    ]
    environment["FAKE_DEVICES"] = "0"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "check -1",
        "this library needs a GPU: the driver has no device",
    ]
