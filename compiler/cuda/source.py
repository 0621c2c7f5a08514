"""CUDA C++ of a program's kernels, as TVM prints it, and their parameters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from wattune.compiler.cc import last_lines
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.errors import BuildError
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.target import Target

_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)_kernel\(([^)]*)\) \{'
)
# TVM passes a kernel's free variables under these names: data of a parameter NAME_ptr as
# NAME_ptr or, where a buffer of another name views it, under the buffer's name.
_PARAMETER = re.compile(r"(\w+)$")


@dataclass(frozen=True)
class DeviceSource:
    """One translation unit; ``parameters`` names those of each kernel, in order."""

    text: str
    parameters: Mapping[str, tuple[str, ...]]


def device_source(program: GpuProgram, target: Target) -> DeviceSource:
    """Return the source of all kernels of a program; nothing here needs a GPU or nvcc."""
    tvm = prepare_tvm()
    device = tvm.target.Target(target.cuda(), host={"kind": "llvm"})
    named = {name: f.with_attr("global_symbol", name) for name, f in program.kernels.items()}
    try:
        with _source_only(), device:
            made = tvm.compile(tvm.IRModule(named), target=device, tir_pipeline="tirx")
            text = made.mod.imports[0].inspect_source()
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {last_lines(str(error))}") from error
    found = {name: _names(parameters) for name, parameters in _KERNEL.findall(text)}
    if missing := sorted(set(program.kernels) - set(found)):
        raise BuildError(f"TVM made no device code of {missing[0]}")
    return DeviceSource(text, found)


def _names(parameters: str) -> tuple[str, ...]:
    words = (p.strip() for p in parameters.split(",") if p.strip())
    return tuple(match[1] for word in words if (match := _PARAMETER.search(word)))


def parameter_orders(program: GpuProgram, source: DeviceSource) -> dict[str, tuple[int, ...]]:
    """Return, for each kernel's parameters in order, which of the passed arguments it is."""
    orders = {}
    for name, parameters in source.parameters.items():
        passed = program.passed[name]
        try:
            orders[name] = tuple(passed.index(parameter) for parameter in parameters)
        except ValueError:
            missing = sorted(set(parameters) - set(passed))
            raise BuildError(
                f"kernel {name} takes {missing[0]}, which its launch does not pass; "
                f"passed: {', '.join(passed)}"
            ) from None
    return orders


@contextmanager
def _source_only() -> Iterator[None]:
    """Have TVM keep the source: compiling it is ours to do, with our flags and our cache."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
