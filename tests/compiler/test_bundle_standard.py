"""The standard GPU measurement: its cases, and a dry run of it on the emulated driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu import peers
from benchmarks.gpu.cases import Case, cases, seer
from benchmarks.gpu.prepare import prepare, served
from benchmarks.gpu.summary import tables

from wattune.ops import DecodeAttention, TernaryGemm
from wattune.schedules.target import Target

ROOT = Path(__file__).parents[2]
TINY = DecodeAttention(2, 70, 8, 2, 64)


def test_cases_have_names_of_their_own_and_the_papers_shapes() -> None:
    found = list(cases())
    assert len({case.name for case in found}) == len(found)
    assert len({case.problem for case in found}) == len(found)
    standard = [case for case in found if case.standard]
    assert 8 <= len(standard) <= 14, "eight minutes are enough for so many"
    assert sum(case.energy for case in found) == 3
    sparse = seer(16, 32768, 0.9)
    assert (sparse.to_json()["max_blocks"], sparse.to_json()["block_size"]) == (51, 64)


def test_a_case_that_no_template_serves_leaves_a_note() -> None:
    wanted = [Case("dense", TINY), Case("ternary", TernaryGemm(1, 16, 16))]
    found, notes = served(wanted, Target.parse("cuda:sm_90a"))
    assert [case.name for case in found] == ["dense"]
    assert notes == ["ternary: no template serves ternary_gemm 1x16x16 on cuda:sm_90a"]


def test_the_whole_measurement_on_the_emulated_driver(
    emulated_gpu: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a sanitizer that only starts what it is given, and without torch on the GPU."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    small = DecodeAttention(1, 33, 8, 2, 64)
    wanted = [Case("tiny", TINY, energy=True), Case("small", small, small=True)]
    assert prepare(wanted, Target.parse("cuda:sm_90a"), bundle, samples=1) == []
    command = [sys.executable, str(ROOT / "benchmarks/gpu/run.py"), "--minutes", "2"]
    done = subprocess.run(
        [*command, "--bundle", str(bundle), "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*-gpu.json")
    results = json.loads(path.read_text())
    tiny, checked = results["cases"]
    assert tiny["name"] == "tiny"
    assert tiny["measured"] >= 1
    assert tiny["failed"] == []
    assert tiny["best_seconds"] <= tiny["default_seconds"]
    assert checked["measured"] == 1
    assert results["machine"]["gpu"]["device"] == "emulated sm_90"
    assert results["sanitizer"]["status"] == 0
    assert results["sanitizer"]["tail"] == ["small: decode_attention: right"]
    assert any("torch" in note for note in results["notes"])
    assert "tiny" in done.stdout
    assert "limits: read_gbps" in done.stdout


def test_without_a_bundle_it_says_how_to_make_one(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/gpu/run.py"), "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "make gpu-bundle" in done.stderr


def test_tables_show_ours_beside_limits_and_torch() -> None:
    case = {
        "name": "dense",
        "measured": 5,
        "failed": ["y is wrong"],
        "default_seconds": 2e-4,
        "best_seconds": 1e-4,
        "bytes": 400_000_000,
        "energy": {"candidates": 4.0, "least_joules": 0.05, "spread": 0.08, "noise": 0.01},
    }
    torch = [
        {"name": "dense", "backend": "flash", "seconds": 2.5e-4},
        {"name": "dense", "backend": "cudnn", "reason": "refused"},
        {"name": "bf16 matmul", "backend": "matmul", "tflops": 790.0},
    ]
    results = {
        "cases": [case],
        "peers": torch,
        "machine": {"limits": {"read_gbps": 4500.0}},
        "notes": ["left out: x"],
    }
    lines = tables(results).splitlines()
    assert lines[1].split()[1:] == ["5", "1", "200.0", "100.0", "4000", "0.89", "flash", "2.50x"]
    assert "4 candidates within the band: from 50.000 mJ, 8.0% apart, noise 1.0%" in lines[2]
    assert lines[3] == "limits: read_gbps 4500, bf16 matmul 790"
    assert lines[4] == "note: left out: x"


def test_torch_s_attention_is_what_ours_is_compared_with() -> None:
    """On the CPU, by the backend that is there: folded or not, the reference's answer."""
    torch = pytest.importorskip("torch")
    import numpy as np

    from wattune.ops import operator

    problem = DecodeAttention(2, 19, 8, 2, 16, dtype="float32")
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(0))
    expected = operator(problem.operator).reference(problem, inputs)["out"]
    q, k, v = (torch.from_numpy(inputs[name]) for name in ("q", "k_cache", "v_cache"))
    for folded in (False, True):
        run = peers.sdpa(torch, problem, q, "MATH", folded)
        np.testing.assert_allclose(run(k, v).numpy(), expected, rtol=1e-4, atol=1e-5)
