"""Building: self-contained libraries, and reasons where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattune.compiler.build import baseline, build_candidate, build_pack, build_shared
from wattune.compiler.cc import cached, last_lines, run
from wattune.compiler.measure.ffi import Call, Library
from wattune.errors import BuildError
from wattune.ops import Argument, TernaryGemm
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

SIZE = 4096
BLOCK = 256


def doubling(source: str, target: str, parallel: bool = False, call: str = "") -> Any:
    """Return y = 2 x between two dtypes, optionally with a call of some symbol."""

    def body(tensors: Tensors) -> None:
        from tvm.script import tirx as T

        if call:
            T.evaluate(T.call_extern("int32", call))
        loop = T.parallel if parallel else T.serial
        with loop(SIZE // BLOCK) as outer, T.serial(BLOCK) as inner:
            at = outer * BLOCK + inner
            value = T.cast(tensors["x"][at], "float32") * T.float32(2)
            T.buffer_store(tensors["y"], T.cast(value, target), [at])

    arguments = (
        Argument("x", (SIZE,), source, "input"),
        Argument("y", (SIZE,), target, "output"),
    )
    return tensor_program(arguments, {}, body)


def run_doubling(path: Path, source: str, target: str) -> tuple[Any, Any]:
    x = np.linspace(-70000, 70000, SIZE).astype(source)
    y = np.zeros(SIZE, target)
    call = Call([(x.ctypes.data, source, (SIZE,)), (y.ctypes.data, target, (SIZE,))])
    Library(str(path)).call("double", call)
    return x, y


def test_a_library_holds_functions_by_name_and_counts_its_code(tmp_path: Path) -> None:
    path = tmp_path / "k.so"
    functions = {"double": doubling("float32", "float32"), "half": doubling("float32", "float16")}
    facts = build_shared(functions, Target.native(1), path)
    x, y = run_doubling(path, "float32", "float32")
    np.testing.assert_array_equal(y, 2 * x)
    assert 100 < facts["code_bytes"] < path.stat().st_size
    assert facts["compile_seconds"] > 0
    needed = run(["readelf", "-d", path])
    assert "libgomp" not in needed, "one thread needs no OpenMP"
    assert [p.name for p in tmp_path.iterdir()] == ["k.so"], "objects are left behind"


@pytest.mark.parametrize("target", [Target.native(1), baseline(Target.native(1))])
def test_half_precision_needs_no_help_from_outside(tmp_path: Path, target: Target) -> None:
    """A baseline CPU has no instruction for it; other libraries' helpers use other registers."""
    path = tmp_path / "k.so"
    build_shared({"double": doubling("float32", "float16")}, target, path)
    with np.errstate(over="ignore"):
        x, y = run_doubling(path, "float32", "float16")
        np.testing.assert_array_equal(y, (2 * x).astype(np.float16))
    build_shared({"double": doubling("float16", "float32")}, target, path := tmp_path / "h.so")
    with np.errstate(over="ignore"):
        x, y = run_doubling(path, "float16", "float32")
        np.testing.assert_array_equal(y, 2 * x.astype(np.float32))


def test_parallel_libraries_carry_their_own_launcher(tmp_path: Path) -> None:
    """In a process that never had TVM, with as many threads as were asked for, up to the cores."""
    target, path = Target.native(), tmp_path / "k.so"
    build_shared({"double": doubling("float32", "float32", parallel=True)}, target, path)
    code = (
        "import sys, os, json, ctypes, numpy as np\n"
        "sys.modules['tvm'] = sys.modules['torch'] = None\n"
        "from wattune.compiler.measure.ffi import Call, Library\n"
        f"library = Library({str(path)!r})\n"
        f"x, y = np.arange({SIZE}, dtype='float32'), np.zeros({SIZE}, 'float32')\n"
        f"call = Call([(a.ctypes.data, 'float32', ({SIZE},)) for a in (x, y)])\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "library.call('double', call)\n"
        "started = len(os.listdir('/proc/self/task')) - before\n"
        "threads = [library._library.wattune_set_num_threads(n) for n in (1, 100000, -1)]\n"
        "library.call('double', call)\n"
        "print(json.dumps([bool((y == 2 * x).all()), started, threads]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    right, started, threads = json.loads(done.stdout)
    assert right
    assert started == target.cores - 1
    assert threads == [1, target.cores, 1]


def test_an_undefined_symbol_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "k.so"
    with pytest.raises(BuildError, match="no_such_function"):
        function = doubling("float32", "float32", call="no_such_function")
        build_shared({"double": function}, Target.native(1), path)
    assert not list(tmp_path.iterdir())


def test_what_only_tvms_runtime_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="TVMBackendParallelBarrier"):
        function = doubling("float32", "float32", call="TVMBackendParallelBarrier")
        build_shared({"double": function}, Target.native(1), tmp_path / "k.so")


def test_the_compilers_reason_is_short(tmp_path: Path) -> None:
    def body(tensors: Tensors) -> None:
        from tvm.script import tirx as T

        number = T.llvm_lookup_intrinsic_id("llvm.x86.sse2.pause")
        T.evaluate(T.call_llvm_intrin(number, T.int32(1), dtype="void"))

    function = tensor_program((Argument("x", (1,), "int32", "input"),), {}, body)
    with pytest.raises(BuildError) as caught:
        build_shared({"broken": function}, Target.native(1), tmp_path / "k.so")
    assert len(str(caught.value)) < 600
    assert "arguments" in str(caught.value)


def test_values_outside_the_space_do_not_build(tmp_path: Path) -> None:
    candidate = default_candidate(TernaryGemm(1, 64, 64), Target.native(1))
    values = {**candidate.schedule.values, "groups": 3}
    wrong = Schedule.make(candidate.schedule.template, values)
    with pytest.raises(Exception, match="groups is 3"):
        build_candidate(Candidate(candidate.problem, candidate.target, wrong), tmp_path / "k.so")


def test_pack_programs_are_for_every_machine(tmp_path: Path) -> None:
    candidate = default_candidate(TernaryGemm(1, 64, 64), Target.native(1))
    path, values = tmp_path / "p.so", candidate.schedule.values
    build_pack(candidate.problem, candidate.target, template_of(candidate), values, path)
    assembly = run(["objdump", "-d", path])
    assert "__tvm_ffi_pack_weight" in assembly
    assert "%ymm" not in assembly
    assert "%zmm" not in assembly


def test_c_sources_are_compiled_once(tmp_path: Path) -> None:
    source = tmp_path / "f.c"
    source.write_text("int f(void) { return WHICH; }")
    first = cached(source, ("-DWHICH=1",), ".so")
    changed = first.stat().st_mtime_ns
    cached.cache_clear()
    assert cached(source, ("-DWHICH=1",), ".so") == first
    assert first.stat().st_mtime_ns == changed
    assert cached(source, ("-DWHICH=2",), ".so") != first
    source.write_text("int f(void) { return broken; }")
    with pytest.raises(BuildError, match="broken"):
        cached(source, ("-DWHICH=3",), ".so")


def test_last_lines_keep_the_end() -> None:
    text = "\n".join(["noise"] * 50 + ["first", "", "  second  ", "third"])
    assert last_lines(text) == "first | second | third"
    assert len(last_lines("x" * 5000)) <= 400
