"""Libraries and bad input: each a clear message, never a crash."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tests.compiler.libraries import IN, OUT, PROBLEMS, TARGET, case, exported, sources
from tests.compiler.libraries import kernels as kernels

from wattune.compiler.library import package
from wattune.compiler.library.choose import choose
from wattune.compiler.library.entry import Entry
from wattune.compiler.library.features import CPUID_BITS, Bit
from wattune.compiler.library.loader import Kernels, load
from wattune.errors import ArgumentError, LibraryError, TargetError
from wattune.ops import TernaryGemm

F32 = np.float32
x = np.zeros((2, IN), F32)
weights = np.zeros((OUT, IN), np.int8)


@pytest.fixture
def entry(kernels: Kernels) -> Entry:
    return kernels.ternary_gemm


CALLS: dict[str, tuple[Callable[[Entry, Any], Any], str]] = {
    "dtype": (
        lambda e, p: e(x.astype(np.float64), p),
        r"x is float64; expected float32 or bfloat16 or int8",
    ),
    "columns": (
        lambda e, p: e(np.zeros((2, 100), F32), p),
        rf"x has shape \[2, 100\].*expected \[tokens, {IN}\] float32",
    ),
    "one dimension": (lambda e, p: e(np.zeros(IN, F32), p), rf"x has shape \[{IN}\]"),
    "no dimension": (lambda e, p: e(np.zeros((), F32), p), "too few dimensions"),
    "no packed data": (lambda e, p: e(x), r"packed data is missing; expected what .pack\(\)"),
    "a list": (lambda e, p: e([[0.0] * IN], p), "list given; expected torch tensors or numpy"),
    "too many": (lambda e, p: e(x, x, x, p), "takes no 3 tensors by position; allowed: x, x_scale"),
    "unknown name": (lambda e, p: e(x, p, y=x), "takes no y; allowed: x, x_scale, out, workspace"),
    "unneeded scale": (
        lambda e, p: e(x, p, x_scale=np.zeros(2, F32)),
        "x_scale is given, but these kernels take none",
    ),
    "sizes that disagree": (
        lambda e, p: e(x.astype(np.int8), p, x_scale=np.zeros(3, F32)),
        r"x_scale has shape \[3\].*expected \[tokens\] float32 with tokens 2",
    ),
    "rows of out": (
        lambda e, p: e(x, p, out=np.zeros((3, OUT), F32)),
        rf"y has shape \[3, {OUT}\].*expected \[tokens, {OUT}\] float32 with tokens 2",
    ),
    "dtype of out": (
        lambda e, p: e(x, p, out=np.zeros((2, OUT), np.float64)),
        "y has shape .* dtype float64",
    ),
    "strided out": (
        lambda e, p: e(x, p, out=np.zeros((2, 2 * OUT), F32)[:, ::2]),
        "y is not contiguous",
    ),
    "misaligned out": (
        lambda e, p: e(x, p, out=np.zeros(2 * OUT * 4 + 1, np.uint8)[1:].view(F32).reshape(2, OUT)),
        "y is at address .* expected a multiple of 4",
    ),
    "read-only out": (
        lambda e, p: e(x, p, out=np.frombuffer(bytes(8 * OUT), F32).reshape(2, OUT)),
        "cannot be passed",
    ),
    "small workspace": (
        lambda e, p: e(x, p, workspace=_aligned(64)),
        r"workspace has 64 bytes; expected at least \d+",
    ),
    "misaligned workspace": (
        lambda e, p: e(x, p, workspace=_aligned(e.workspace_bytes + 1)[1:]),
        "workspace is at address .* multiple of 64",
    ),
    "no scale": (
        lambda e, p: e(x, e.pack(weights)),
        r"the packed data holds no weight_scale: give scale= to .pack\(\)",
    ),
    "other layout": (
        lambda e, p: e(x, replace(p, layout="i2:made=up")),
        r"layout i2:made=up, the kernels of this library read .*: pack the weights again",
    ),
    "other sizes": (
        lambda e, p: e(x, e.pack(np.zeros((37, 129), np.int8), 1.0)),
        r"x has shape|weight has shape",
    ),
    "value out of range": (
        lambda e, p: e.pack(weights + np.int8(2), 1.0),
        r"weights\[0, 0\] is 2; allowed: -1 to 1",
    ),
    "fraction": (lambda e, p: e.pack(weights + 0.5, 1.0), "values that int8 cannot hold"),
    "shape of weights": (
        lambda e, p: e.pack(weights.T, 1.0),
        rf"weights has shape \[{IN}, {OUT}\]; expected \[{OUT}, {IN}\] int8 or",
    ),
    "scale for each row": (
        lambda e, p: e.pack(weights, np.zeros(OUT, F32)),
        rf"scale has shape \[{OUT}\]; expected \[1\] float32",
    ),
    "unknown source": (lambda e, p: e.pack(weights, bias=1), "pack takes weights, scale"),
}


def _aligned(count: int) -> Any:
    raw = np.zeros(count + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:count]


@pytest.mark.parametrize("name", CALLS)
def test_bad_call(entry: Entry, name: str) -> None:
    call, message = CALLS[name]
    packed = entry.pack(weights, 1.0)
    with pytest.raises(ArgumentError, match=message):
        call(entry, packed)


def test_overlap(entry: Entry) -> None:
    packed = entry.pack(weights, 1.0)
    memory = np.zeros(2 * IN, F32)
    with pytest.raises(ArgumentError, match="y overlaps x"):
        entry(memory.reshape(2, IN), packed, out=memory[IN : IN + 2 * OUT].reshape(2, OUT))


def test_unknown_operator(kernels: Kernels) -> None:
    with pytest.raises(AttributeError, match=r"no operator 'rmsnorm'.*ternary_gemm"):
        _ = kernels.rmsnorm


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no such file"):
        load(tmp_path / "none.so")
    with pytest.raises(LibraryError, match="at least one"):
        load([])


@pytest.mark.parametrize("size", [0, 40, 100, 5000, -1])
def test_file_that_was_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(exported().read_bytes()[:size])
    with pytest.raises(LibraryError, match=r"not a 64-bit shared library|is cut off"):
        load(path)


def test_library_for_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    content = bytearray(exported().read_bytes())
    content[18:20] = (243).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(LibraryError, match="is for riscv64, this machine is"):
        load(path)


def test_another_library(tmp_path: Path) -> None:
    source, path = tmp_path / "a.c", tmp_path / "a.so"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", path], check=True)
    with pytest.raises(LibraryError, match="not a wattune library"):
        load(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'"abi": 4', b'"abi": 9', "ABI version 9.*reads version 4: export the library again"),
        (b'"format": "wattune.l', b'"format": "another.l', "not a wattune library"),
        (b'"signature"', b'"singature"', "manifest is damaged"),
    ],
)
def test_another_manifest(tmp_path: Path, before: bytes, after: bytes, message: str) -> None:
    path = tmp_path / "kernels.so"
    content = exported().read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(LibraryError, match=message):
        load(path)


def test_another_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Subleaf 0 of leaf 7 returns the number of subleaves in eax: its top bit is never set.
    imaginary = {"avx4096": Bit(7, 0, 0, 31)}
    monkeypatch.setattr(package, "required_features", lambda target: imaginary)
    problem = PROBLEMS[0]
    library = package.build(choose([problem], TARGET, None, "latency", None), TARGET)
    path = library.export(tmp_path / "other.so")
    with pytest.raises(LibraryError, match=r"other\.so needs avx4096.*cpu:generic"):
        load(path)
    inputs, _ = case(problem)
    good = load([path, exported()]).ternary_gemm
    packed = good.pack(**sources(inputs))
    assert good(inputs["x"], packed).shape == (1, OUT)
    tensors = [inputs["x"], None, packed.data["weight"], packed.data["weight_scale"], None]
    raw = tvm_ffi.load_module(str(path))["ternary_gemm"]
    with pytest.raises(TargetError, match="compiled for a CPU with avx4096"):
        raw(*tensors, np.zeros((1, OUT), F32))
    with pytest.raises(TypeError, match="5 arguments; expected 6"):
        raw(*tensors)
    with pytest.raises(TypeError, match="x is not a tensor"):
        raw(1, *tensors)


@pytest.mark.isa("avx2")
def test_features_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CPUID says agrees with what the system says."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in cpuinfo if line.startswith("flags")).split())
    aliases = {"lzcnt": "abm"}
    lacking = [name for name in CPUID_BITS if aliases.get(name, name) not in flags]
    monkeypatch.setattr(package, "required_features", lambda target: CPUID_BITS)
    library = package.build(choose([PROBLEMS[0]], TARGET, None, "latency", None), TARGET)
    missing = tvm_ffi.load_module(str(library.path))["missing_features"]()
    assert str(missing) == ", ".join(lacking)


def test_export_to_a_bad_place(tmp_path: Path) -> None:
    library = package.build(choose([PROBLEMS[0]], TARGET, None, "latency", None), TARGET)
    with pytest.raises(LibraryError, match="no/where"):
        library.export(tmp_path / "no" / "where" / "kernels.so")
    with pytest.raises(LibraryError, match=r"allowed: a name ending in \.so"):
        library.export(tmp_path / "kernels.h")
    assert not list(tmp_path.iterdir())


def test_two_layouts_of_one_weight() -> None:
    fixed = [TernaryGemm(1, OUT, IN, format=name) for name in ("i2", "t5")]
    with pytest.raises(LibraryError, match=r"two layouts in one library.*i2.*t5"):
        package.build(choose(fixed, TARGET, None, "latency", None), TARGET)
