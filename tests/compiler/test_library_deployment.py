"""Libraries where they are deployed: Python without TVM or torch, C++, C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm_ffi
from tests.compiler.libraries import IN, OUT, TARGET, exported, exported_attention

from wattune.compiler.library.choose import choose
from wattune.compiler.library.package import build
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.moe_topk import MoeTopk

ROOT = Path(__file__).parents[2]

DEPLOYMENT = f"""
import sys
for name in ("tvm", "torch", "xgboost", "click", "jinja2"):
    sys.modules[name] = None
import numpy as np
import wattune as wt
kernels = wt.load(sys.argv[1])
rng = np.random.default_rng(0)
weights = rng.integers(-1, 2, ({OUT}, {IN}), dtype=np.int8)
packed = kernels.ternary_gemm.pack(weights, scale=0.5)
for tokens in (0, 1, 3, 8, 21):
    problem = wt.TernaryGemm(max(tokens, 1), {OUT}, {IN})
    x = rng.standard_normal((tokens, {IN}), dtype=np.float32)
    y = kernels.ternary_gemm(x, packed)
    inputs = dict(x=x, weights=weights, scale=np.float32([0.5]))
    expected = wt.ops.operator("ternary_gemm").reference(problem, inputs)["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-6)
maps = open("/proc/self/maps").read()
assert "libtvm_ffi" in maps
assert "libtvm_runtime" not in maps and "libtvm_compiler" not in maps and "libtvm.so" not in maps
print("served")
"""


def test_python_without_tvm_and_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEPLOYMENT, str(exported())], capture_output=True, text=True
    )
    assert done.stdout == "served\n", done.stderr


def built(example: str, library: Path, folder: Path) -> Path:
    """Build a C++ example as its README says."""
    path = folder / example
    ffi = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    flags: list[str] = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{library.parent}"]
    paths = [f"-Wl,-rpath,{library.parent}", f"-Wl,-rpath,{ffi.parent}"]
    source = ROOT / f"examples/c/{example}.cc"
    files = [str(file) for file in (path, source, library, ffi)]
    subprocess.run(["g++", *flags, "-o", *files, *paths], check=True)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("gemm", exported(), tmp_path_factory.mktemp("cxx"))


@pytest.mark.parametrize("tokens", [1, 8, 21])
def test_cxx_program(program: Path, tokens: int) -> None:
    done = subprocess.run([program, str(OUT), str(IN), str(tokens)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tokens} x {OUT} x {IN}: largest relative error" in done.stdout
    assert f"expected [tokens, {IN}] float32" in done.stdout


def test_cxx_program_with_other_sizes(program: Path) -> None:
    done = subprocess.run([program, "5", "6", "7"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "packs no source of this shape" in done.stderr


def test_cxx_attention(tmp_path: Path) -> None:
    problems = [DecodeAttention(batch, 64, 8, 2, 48) for batch in (1, 4)]
    library = build(choose(problems, TARGET, None, "latency", None), TARGET)
    path = library.export(tmp_path / "kernels.so")
    program = built("attention", path, tmp_path)
    for batch, capacity in (1, 64), (3, 40), (9, 200):
        command = [str(program), "8", "2", "48", str(batch), str(capacity)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{batch} requests, up to {capacity} tokens: largest error" in done.stdout
        assert f"seq_lens[0] is {capacity + 1}; allowed: 0 to {capacity}" in done.stdout
    done = subprocess.run([program, "8", "4", "48", "1", "9"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "k_cache has shape [1, 4, 9, 48] and dtype bfloat16; expected [batch, 2," in done.stderr


def test_cxx_routing(tmp_path: Path) -> None:
    problem = MoeTopk(8, 24, 3, e_score_correction_bias=True)
    library = build(choose([problem], TARGET, None, "latency", None), TARGET)
    program = built("routing", library.export(tmp_path / "kernels.so"), tmp_path)
    for tokens in (1, 5, 8, 20):
        command = [str(program), "24", "3", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{tokens} x 24 x 3: " in done.stdout
    done = subprocess.run([program, "23", "3", "1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "gating_output has shape [1, 23]" in done.stderr


@pytest.mark.parametrize(
    "compiler", [("gcc", "-std=c11", "-xc"), ("g++", "-std=c++11", "-xc++")], ids=("c", "c++")
)
@pytest.mark.parametrize("library", [exported, exported_attention])
@pytest.mark.parametrize("dlpack", [True, False])
def test_header_compiles(
    compiler: tuple[str, ...], library: Callable[[], Path], dlpack: bool, tmp_path: Path
) -> None:
    source = tmp_path / "use"
    source.write_text(
        '#include "kernels.h"\n'
        "int main(void) { DLTensor t = wattune_tensor(0, 0, 0, kDLInt, 8); return t.ndim; }\n"
    )
    folders = [f"-I{library().parent}"]
    if dlpack:
        folders.append(f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}")
    flags = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([*compiler, *flags, *folders, str(source)], check=True)
