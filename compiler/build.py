"""From tensor programs to shared libraries: lower, compile with TVM, link with the C compiler.

TVM's own export starts g++ and leaves the thread launcher to its runtime; here the objects are
linked directly, with our launcher inside, and every undefined symbol is accounted for.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattune.compiler.cc import cached, compiler, last_lines, run
from wattune.compiler.cuda.image import HOST
from wattune.compiler.cuda.program import build_gpu, gpu_launcher
from wattune.compiler.cuda.rules import refusal
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.errors import BuildError, WattuneError
from wattune.ops import Problem, operator
from wattune.schedules.candidate import Candidate
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template, template_of

LAUNCHER = Path(__file__).parent / "library" / "launcher.c"

_EXECUTABLE = 4  # SHF_EXECINSTR

# Versioned symbols were found in a library that the linker saw; tvm-ffi is loaded before ours.
_UNDEFINED = re.compile(r"^ +U (?!TVMFFI)([^@\s]+)$", re.MULTILINE)
# Calls into TVM's runtime go through pointers; those that the launcher does not fill stay zero.
_UNFILLED = re.compile(r" [VBb] __(TVM\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Built:
    """Object files, and facts of what was compiled into them."""

    objects: tuple[Path, ...]
    facts: Mapping[str, float]


def build_objects(
    programs: Mapping[str, Any], target: Target, path: Path, also: Sequence[str] = ()
) -> Built:
    """Compile programs into object files with a symbol ``__tvm_ffi_<name>`` for each.

    A program is a PrimFunc, or a `GpuProgram`, whose machine code gets an object of its own, for
    the target and for the architectures ``also`` names. ``path`` is the first object; the others
    lie beside it.
    """
    gpu = {name: p for name, p in programs.items() if isinstance(p, GpuProgram)}
    functions = {name: p for name, p in programs.items() if name not in gpu}
    functions.update({name + HOST: p.host for name, p in gpu.items()})
    _build_host(functions, target, path)
    objects = [path]
    facts: dict[str, float] = {}
    for name, program in gpu.items():
        objects.append(path.with_name(f"{path.stem}-{name}.o"))
        facts.update(build_gpu(name, program, target, objects[-1], also))
    if gpu:
        objects += gpu_launcher()
    return Built(tuple(objects), facts)


def _build_host(functions: Mapping[str, Any], target: Target, path: Path) -> None:
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
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = build_objects(functions, target, Path(folder) / "kernels.o")
        compiled = time.perf_counter()
        facts = link([*built.objects, *extra_objects], path, target.host_threads)
    linked = time.perf_counter()
    times = {"compile_seconds": compiled - start, "link_seconds": linked - compiled}
    return {**times, **facts, **built.facts}


def build_candidate(candidate: Candidate, path: Path) -> dict[str, float]:
    """Build a candidate into a library whose function is ``kernel``; returns facts of the build.

    One that its machine code speaks against (`wattune.compiler.cuda.rules`) is a `BuildError`.
    """
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
    if reason := refusal(facts):
        path.unlink()
        raise BuildError(f"not measured: {reason}")
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
