"""Run AMX kernels on a CPU without AMX: tile intrinsics become calls of tests/emulator/amx.c."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wattune.compiler.cc import cached

PREFIX = "llvm.x86."
INSTRUCTIONS = (
    "ldtilecfg",
    "tilerelease",
    "tilezero",
    "tileloadd64",
    "tilestored64",
    "tdpbsud",
    "tdpbusd",
    "tdpbssd",
    "tdpbuud",
    "tdpbf16ps",
)


class TileFaultError(AssertionError):
    """What the hardware would have answered with a fault, or the emulator's stricter rules."""


@dataclass(frozen=True)
class Counters:
    """Instructions that ran."""

    dots: int
    loads: int
    stores: int
    configurations: int
    releases: int


@cache
def library() -> ctypes.CDLL:
    """Compile the emulator and make its symbols visible to compiled kernels."""
    flags = ("-O3", "-fopenmp-simd")
    return ctypes.CDLL(
        str(cached(Path(__file__).with_name("amx.c"), flags, ".so")), ctypes.RTLD_GLOBAL
    )


def collect() -> Counters:
    """Return what ran since the last call; a fault since then is raised."""
    text = ctypes.create_string_buffer(256)
    counts = (ctypes.c_long * 5)()
    faults = library().emulator_collect(text, len(text), counts)
    if faults:
        raise TileFaultError(f"{text.value.decode()} ({faults} faults)")
    return Counters(*counts)


def emulate(
    function: Any, change: Callable[[str, list[Any]], list[Any] | None] | None = None
) -> Any:
    """Return the PrimFunc with every tile intrinsic replaced by a call of the emulator.

    ``change`` sees each instruction's name and operands and returns other operands, or None to
    drop the instruction: to plant a mistake.
    """
    import tvm
    from tvm.script import tirx as T
    from tvm_ffi import structural_map

    library()
    names = {T.llvm_lookup_intrinsic_id(PREFIX + name): name for name in INSTRUCTIONS}

    def replace(call: Any) -> Any:
        if call.op.name != "tirx.call_llvm_intrin":
            return call
        name = names.get(int(call.args[0].value))
        if name is None:
            return call
        operands = list(call.args[1:])
        changed = operands if change is None else change(name, operands)
        if changed is None:
            return tvm.tirx.const(0, "int32")
        return T.call_extern("int32", f"emulator_{name}", *changed)

    return structural_map(function, (tvm.ir.Call, replace))
