"""Libraries: results of every variant and bucket, packing, coverage, threads, manifest."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.libraries import (
    IN,
    OUT,
    PROBLEMS,
    TARGET,
    assert_close,
    case,
    exported,
    sources,
)
from tests.compiler.libraries import kernels as kernels

from wattune.compiler.library.choose import choose
from wattune.compiler.library.loader import Kernels, load
from wattune.compiler.library.package import build, compile
from wattune.compiler.library.packed import Packed, load_packed, save_packed
from wattune.errors import LibraryError, ModelError, TargetError, UnknownNameError
from wattune.ops import TernaryGemm
from wattune.schedules.target import Target


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 19])
@pytest.mark.parametrize("problem", dict.fromkeys(replace(p, tokens=1) for p in PROBLEMS), ids=str)
def test_every_variant_and_bucket(kernels: Kernels, problem: TernaryGemm, tokens: int) -> None:
    problem = replace(problem, tokens=tokens)
    inputs, expected = case(problem)
    packed = kernels.ternary_gemm.pack(**sources(inputs))
    y = kernels.ternary_gemm(inputs["x"], packed, x_scale=inputs.get("x_scale"))
    assert_close(problem, y, expected)


def test_one_packed_weight_serves_all_dtypes(kernels: Kernels) -> None:
    floats, expected = case(TernaryGemm(3, OUT, IN))
    packed = kernels.ternary_gemm.pack(**sources(floats))
    assert_close(TernaryGemm(3, OUT, IN), kernels.ternary_gemm(floats["x"], packed), expected)
    problem = TernaryGemm(3, OUT, IN, dtype="int8")
    ints, _ = case(problem, seed=1)
    sums = kernels.ternary_gemm(ints["x"], packed)
    assert np.array_equal(sums, ints["x"].astype(int) @ floats["weights"].astype(int).T)


def test_no_tokens(kernels: Kernels) -> None:
    packed = kernels.ternary_gemm.pack(np.zeros((OUT, IN), np.int8), 1.0)
    assert kernels.ternary_gemm(np.zeros((0, IN), np.float32), packed).shape == (0, OUT)


def test_out_and_workspace(kernels: Kernels) -> None:
    problem = TernaryGemm(12, OUT, IN)
    inputs, expected = case(problem)
    packed = kernels.ternary_gemm.pack(**sources(inputs))
    raw = np.zeros(kernels.ternary_gemm.workspace_bytes + 64, np.uint8)
    workspace = raw[-raw.ctypes.data % 64 :]
    guarded = np.full((14, OUT), 7, np.float32)
    out = guarded[1:13]
    assert kernels.ternary_gemm(inputs["x"], packed, out=out, workspace=workspace) is out
    assert_close(problem, out, expected)
    assert (guarded[[0, -1]] == 7).all()
    assert workspace.any()


def test_inputs_that_are_copied(kernels: Kernels) -> None:
    problem = TernaryGemm(5, OUT, IN)
    inputs, expected = case(problem)
    packed = kernels.ternary_gemm.pack(**sources(inputs))
    strided = np.zeros((5, 2 * IN), np.float32)[:, ::2]
    misaligned = np.zeros(5 * IN * 4 + 1, np.uint8)[1:].view(np.float32).reshape(5, IN)
    for x in (strided, misaligned):
        x[:] = inputs["x"]
        assert_close(problem, kernels.ternary_gemm(x, packed), expected)
    frozen = inputs["x"].copy()
    frozen.flags.writeable = False
    assert_close(problem, kernels.ternary_gemm(frozen, packed), expected)
    assert_close(problem, kernels.ternary_gemm(np.asfortranarray(frozen), packed), expected)


def test_threads_at_once(kernels: Kernels) -> None:
    problems = [TernaryGemm(tokens, OUT, IN) for tokens in (1, 5, 8, 20)]
    cases = [case(problem, seed) for seed, problem in enumerate(problems)]
    packed = [kernels.ternary_gemm.pack(**sources(inputs)) for inputs, _ in cases]

    def call(i: int) -> list[np.ndarray]:
        return [kernels.ternary_gemm(cases[i][0]["x"], packed[i]) for _ in range(200)]

    with ThreadPoolExecutor(4) as pool:
        for i, results in enumerate(pool.map(call, range(4))):
            for y in results:
                assert_close(problems[i], y, cases[i][1])


def test_number_of_threads(kernels: Kernels) -> None:
    assert kernels.set_num_threads(1) == 1
    assert kernels.set_num_threads(-5) == 1
    assert kernels.set_num_threads(1 << 40) >= 1
    kernels.set_num_threads(2)


def test_covers_and_buckets(kernels: Kernels) -> None:
    entry = kernels.ternary_gemm
    assert entry.covers(tokens=1000, out_features=OUT, in_features=IN, dtype="bfloat16")
    assert not entry.covers(out_features=OUT, in_features=IN + 1)
    assert not entry.covers(dtype="float16")
    with pytest.raises(UnknownNameError, match=r"in_feature.*allowed: .*in_features"):
        entry.covers(in_feature=IN)
    assert (1, 8) in entry.buckets.values()


def test_several_libraries(tmp_path: Path) -> None:
    other = TernaryGemm(2, 16, 64)
    path = build(choose([other], TARGET, None, "latency", None), TARGET).export(tmp_path / "b.so")
    kernels = load([exported(), path])
    for problem in (replace(PROBLEMS[0], tokens=3), other):
        inputs, expected = case(problem)
        packed = kernels.ternary_gemm.pack(**sources(inputs))
        assert_close(problem, kernels.ternary_gemm(inputs["x"], packed), expected)


def test_manifest_inside_and_beside(kernels: Kernels) -> None:
    (inside,) = kernels.manifests.values()
    assert exported().with_suffix(".json").read_text() == inside.to_json()
    (table,) = json.loads(inside.to_json())["operators"]
    buckets = [k for v in table["variants"] for k in v["kernels"]]
    assert [(k["lower"]["tokens"], k["upper"]["tokens"]) for k in buckets[:2]] == [(0, 1), (1, 8)]
    assert not inside.verified


def test_packed_round_trip(kernels: Kernels, tmp_path: Path) -> None:
    problem = TernaryGemm(2, 37, 129, scale="row")
    inputs, expected = case(problem)
    packed = kernels.ternary_gemm.pack(**sources(inputs))
    packed.to_safetensors(tmp_path / "one.safetensors")
    read = Packed.from_safetensors(tmp_path / "one.safetensors")
    assert read.fields == {**packed.fields} and read.layout == packed.layout
    assert_close(problem, kernels.ternary_gemm(inputs["x"], read), expected)

    save_packed(tmp_path / "two.safetensors", {"a.b": packed, "c": read})
    assert set(load_packed(tmp_path / "two.safetensors")) == {"a.b", "c"}
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "two.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cut\.safetensors"):
        load_packed(cut)


def test_pack_takes_other_dtypes_and_numbers(kernels: Kernels) -> None:
    inputs, _ = case(TernaryGemm(2, 37, 129, scale="row"))
    entry = kernels.ternary_gemm
    expected = entry.pack(inputs["weights"], np.full(37, 0.5, np.float32))
    packed = entry.pack(inputs["weights"].astype(np.float64).tolist(), scale=0.5)
    for name, array in expected.data.items():
        assert np.array_equal(packed.data[name], array)


@pytest.mark.slow
def test_compile_verifies(tmp_path: Path) -> None:
    problem = TernaryGemm(3, 33, 70)
    library = compile([problem], Target.native(threads=1))
    assert library.manifest.verified
    inputs, expected = case(problem)
    entry = load(library.export(tmp_path / "native.so")).ternary_gemm
    assert_close(problem, entry(inputs["x"], entry.pack(**sources(inputs))), expected)


def test_compile_for_another_machine() -> None:
    elsewhere = Target("cpu", "x86_64", features=("amx_int8", "amx_tile"), cores=512, threads=512)
    with pytest.raises(TargetError, match="allow_unverified"):
        compile([TernaryGemm(1, 16, 16)], elsewhere)
    library = compile([TernaryGemm(1, 16, 16)], elsewhere, allow_unverified=True)
    assert not library.manifest.verified


def test_compile_nothing() -> None:
    with pytest.raises(LibraryError, match="at least one problem"):
        compile([], TARGET)
