"""From tensor programs to shared libraries: lower, compile with TVM, link with the C compiler.

TVM's own export starts g++ and leaves the thread launcher to its runtime; here the objects are
linked directly, with our launcher inside, and every undefined symbol is accounted for.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import platform
import re
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from wattune.compiler.cc import cached, compiler, last_lines, run
from wattune.errors import BuildError, MissingDependencyError, WattuneError
from wattune.ops import Problem, operator
from wattune.schedules.candidate import Candidate
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template, template_of

LAUNCHER = Path(__file__).parent / "library" / "launcher.c"

_EXECUTABLE = 4  # SHF_EXECINSTR

# Modules of TVM that walk the Python stack while they parse a tensor program.
_PARSERS = (
    "tvm.script.parser.core.parser",
    "tvm.script.parser.ir.entry",
    "tvm.tirx.script.builder.ir",
    "tvm.tirx.script.parser.entry",
)

# Versioned symbols were found in a library that the linker saw; tvm-ffi is loaded before ours.
_UNDEFINED = re.compile(r"^ +U (?!TVMFFI)([^@\s]+)$", re.MULTILINE)
# Calls into TVM's runtime go through pointers; those that the launcher does not fill stay zero.
_UNFILLED = re.compile(r" [VBb] __(TVM\w+)$", re.MULTILINE)


class _FastInspect(ModuleType):
    """The ``inspect`` module, with stack walks that do not read source files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    @staticmethod
    def getouterframes(frame: Any, context: int = 1) -> list[inspect.FrameInfo]:
        """Return the frames from this one outwards, without source lines."""
        found = []
        while frame is not None:
            code = frame.f_code
            info = inspect.FrameInfo(
                frame, code.co_filename, frame.f_lineno, code.co_name, None, None
            )
            found.append(info)
            frame = frame.f_back
        return found

    def stack(self, context: int = 1) -> list[inspect.FrameInfo]:
        """Return the frames of the caller outwards, without source lines."""
        return self.getouterframes(sys._getframe(1))


@cache
def prepare_tvm() -> ModuleType:
    """Import TVM and make its parser fast; call it before templates are lowered.

    TVM's parser reads the source of every frame on the stack for each tensor program: 0.1 s and
    more. It needs the frames only.
    """
    try:
        tvm = import_module("tvm")
    except ImportError as error:
        raise MissingDependencyError("apache-tvm", "compiling") from error
    fast = _FastInspect("inspect")
    for name in _PARSERS:
        module = import_module(name)
        module.__dict__["inspect"] = fast
    return tvm


def keep_torch_out() -> None:
    """Stop tvm-ffi from importing torch: for worker processes, where it costs 200 MB and 2 s."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def build_object(functions: Mapping[str, Any], target: Target, path: Path) -> None:
    """Compile PrimFuncs into one object file with a symbol ``__tvm_ffi_<name>`` for each."""
    tvm = prepare_tvm()
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    try:
        compiled = tvm.tirx.build(tvm.IRModule(named), tvm.target.Target(target.llvm()))
        compiled.write_to_file(str(path), "o")
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {last_lines(str(error))}") from error


def launcher_object(threads: int) -> Path:
    """Return the launcher for a default number of threads, compiled at first use."""
    flags = [f"-DWATTUNE_THREADS={threads}", "-fvisibility=hidden"]
    if threads > 1:
        flags.append("-fopenmp")
    return cached(LAUNCHER, tuple(flags), ".o")


def link(objects: Sequence[Path], path: Path, threads: int) -> dict[str, float]:
    """Link objects and the launcher into a shared library; returns ``code_bytes``.

    A symbol that nothing defines would kill the process at the first call: it is an error here.
    """
    libraries = ["-Wl,--as-needed", "-lm", *(["-lgomp"] if threads > 1 else [])]
    parts = [*objects, launcher_object(threads)]
    run([compiler(), "-shared", "-o", path, *parts, *libraries])
    symbols = run(["nm", path])
    if missing := sorted({*_UNDEFINED.findall(symbols), *_UNFILLED.findall(symbols)}):
        path.unlink()
        raise BuildError(f"nothing defines the symbols that the code calls: {', '.join(missing)}")
    return {"code_bytes": float(code_bytes(path))}


def code_bytes(path: Path) -> int:
    """Return the bytes of machine code in a 64-bit ELF file: its sections that can execute."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = (struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count))
    return sum(section[5] for section in sections if section[2] & _EXECUTABLE)


def build_shared(
    functions: Mapping[str, Any],
    target: Target,
    path: Path,
    extra_objects: Sequence[Path] = (),
) -> dict[str, float]:
    """Compile functions into one self-contained library; returns ``compile_seconds`` and size.

    The symbols are ``__tvm_ffi_<name>``. Besides the C library and OpenMP's runtime the library
    needs only libtvm_ffi, already loaded.
    """
    start = time.perf_counter()
    made = path.with_name(f"{path.name}.{os.getpid()}.o")
    try:
        build_object(functions, target, made)
        compiled = time.perf_counter()
        facts = link([made, *extra_objects], path, target.threads)
    finally:
        made.unlink(missing_ok=True)
    linked = time.perf_counter()
    return {"compile_seconds": compiled - start, "link_seconds": linked - compiled, **facts}


def build_candidate(candidate: Candidate, path: Path) -> dict[str, float]:
    """Build a candidate into a library whose function is ``kernel``; returns facts of the build."""
    prepare_tvm()
    start = time.perf_counter()
    problem, target, values = candidate.problem, candidate.target, candidate.schedule.values
    template = template_of(candidate)
    try:
        template.space(problem, target).check(values)
        function = template.lower(problem, target, values)
    except WattuneError:
        raise
    except Exception as error:
        raise BuildError(
            f"{template.name} did not lower: {type(error).__name__}: {last_lines(str(error))}"
        ) from error
    lowered = time.perf_counter()
    facts = build_shared({"kernel": function}, target, path)
    return {"lower_seconds": lowered - start, **facts}


def decided_sizes(candidate: Candidate) -> dict[str, int]:
    """Return the sizes that the schedule decides, checked to be all that the arguments need."""
    problem, target = candidate.problem, candidate.target
    sizes = template_of(candidate).sizes(problem, target, candidate.schedule.values)
    for argument in operator(problem.operator).arguments(problem):
        try:
            argument.concrete({**problem.extents, **sizes})
        except KeyError as error:
            raise BuildError(
                f"{candidate.schedule.template} gives no size {error} for {argument.name}"
            ) from error
    return sizes


def build_pack(
    problem: Problem,
    target: Target,
    template: Template,
    values: Mapping[str, Value],
    path: Path,
) -> None:
    """Build the pack programs ``pack_<argument>`` of a layout; no file where there is none.

    Packing happens once, on any machine of the architecture: for its baseline, with the threads
    of the target.
    """
    prepare_tvm()
    programs = {f"pack_{name}": f for name, f in template.pack(problem, values).items()}
    if programs:
        build_shared(programs, baseline(target), path)


def baseline(target: Target) -> Target:
    """Return the target without instruction-set extensions: what every machine of it runs."""
    arch = target.arch if target.kind == "cpu" else platform.machine()
    return dataclasses.replace(target, kind="cpu", arch=arch, features=())
