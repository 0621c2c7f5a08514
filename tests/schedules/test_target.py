"""Targets: parsed, detected, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wattune.errors import TargetError, UnknownNameError
from wattune.schedules import host
from wattune.schedules.target import CPU_PROFILES, Target


def test_native_describes_this_machine() -> None:
    target = Target.native(threads=1)
    assert target.kind == "cpu"
    assert target.threads == 1
    assert target.runs_here()
    assert Target.native().threads == target.cores


def test_native_reads_flags_not_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may report any CPU name; only the flags decide."""
    info = {"model name": "Some Old CPU", "flags": "fpu avx2 fma bmi2 f16c amx_tile amx_int8"}
    monkeypatch.setattr(host, "_cpuinfo", lambda: info)
    target = Target.native(threads=1)
    assert target.has("avx2", "amx_int8")
    assert not target.has("avx512f")
    assert "fpu" not in target.features


@pytest.mark.parametrize("text", ["native", "cuda:sm_90a", *(f"cpu:{n}" for n in CPU_PROFILES)])
def test_json_round_trip(text: str, tmp_path: Path) -> None:
    target = Target.parse(text)
    path = tmp_path / "target.json"
    path.write_text(json.dumps(target.to_json()))
    assert Target.from_json(target.to_json()) == target
    assert Target.parse(str(path)) == target
    assert Target.parse(str(path)).key == target.key


def test_threads_are_limited_by_cores() -> None:
    with pytest.raises(TargetError, match="threads is 100000; allowed: 1 to"):
        Target.native(threads=100000)
    with pytest.raises(TargetError, match="threads is 0"):
        Target.native(threads=0)


@pytest.mark.parametrize("text", ["tpu", "cpu:486", "cuda:ampere", ""])
def test_unknown_targets_list_what_is_allowed(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target .*cpu:vnni.*cuda:sm_90a"):
        Target.parse(text)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"absent\.json"):
        Target.parse(str(tmp_path / "absent.json"))
    bad = tmp_path / "bad.json"
    bad.write_text('{"kind": "cpu"')
    with pytest.raises(TargetError, match=r"bad\.json"):
        Target.parse(str(bad))
    bad.write_text('{"kind": "cpu", "arch": "x86_64", "sockets": 2}')
    with pytest.raises(TargetError, match="no field 'sockets'"):
        Target.parse(str(bad))


def test_a_target_with_more_features_does_not_run_here() -> None:
    here = Target.native(threads=1)
    beyond = Target.from_json({**here.to_json(), "features": [*here.features, "imaginary"]})
    assert not beyond.runs_here()
    assert not Target.parse("cuda:sm_90a").runs_here()


def test_llvm_attributes_follow_the_features() -> None:
    amx = Target.parse("cpu:amx").llvm()
    assert "+amx-int8" in amx["mattr"]
    assert "+avx512vnni" in amx["mattr"]
    # x86-64-v4 would prefer 256-bit vectors.
    assert amx["mcpu"] == "x86-64-v3"
    assert Target.from_json({"kind": "cpu", "arch": "aarch64"}).llvm() == {
        "kind": "llvm",
        "num-cores": 1,
    }


def test_a_gpu_has_a_host_that_any_machine_is() -> None:
    hopper = Target.parse("cuda:sm_90a")
    assert hopper.llvm()["kind"] == "llvm"
    assert "mattr" not in hopper.llvm()
    assert hopper.cuda()["arch"] == "sm_90a"
    assert hopper.cuda()["max_shared_memory_per_block"] == 227 << 10
    with pytest.raises(TargetError, match="made for 'cuda' only"):
        Target.parse("cpu:avx2").cuda()
