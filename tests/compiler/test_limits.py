"""The machine's limits: plausible, stored as plain data, read between the measured points."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess

import pytest

from wattune.compiler.cc import compiler
from wattune.compiler.measure.affinity import usable_cpus
from wattune.compiler.measure.limits import (
    SOURCE,
    Limits,
    footprints,
    read_bandwidth_at,
    unit_gops,
)
from wattune.errors import TargetError
from wattune.schedules.target import Target

MIB = 1 << 20


def test_limits_survive_json() -> None:
    limits = Limits({"1:1048576:huge": 10.0}, vnni_gops={"1": 900.0})
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert Limits.from_json({"read_gbps": {}, "from_the_future": {"1": 2.0}}) == Limits()


def test_bandwidth_between_footprints_is_interpolated() -> None:
    limits = Limits({"1:1048576:huge": 100.0, "1:4194304:huge": 20.0, "2:1048576:huge": 7.0})
    assert limits.read_bandwidth(MIB, 1) == 100.0
    assert limits.read_bandwidth(2 * MIB, 1) == pytest.approx(60.0)
    assert limits.read_bandwidth(1, 1) == 100.0
    assert limits.read_bandwidth(999 * MIB, 1) == 20.0
    assert limits.read_bandwidth(MIB, 2) == 7.0
    with pytest.raises(TargetError, match="3 threads on huge pages"):
        limits.read_bandwidth(MIB, 3)


def test_footprints_are_powers_of_two_up_to_the_cold_one() -> None:
    found = footprints(100 << 10)
    assert found == [16 << 10, 32 << 10, 64 << 10, 100 << 10]


@pytest.mark.measure
def test_caches_are_faster_than_memory() -> None:
    small, large = read_bandwidth_at(16 << 10, 1), read_bandwidth_at(256 * MIB, 1)
    assert 1 < large < small < 5000


def test_less_than_a_turn_of_a_loop_has_a_bandwidth() -> None:
    assert read_bandwidth_at(64, 1, seconds=0.01) > 0


@pytest.mark.measure
def test_units_are_measured_where_the_machine_has_them() -> None:
    here = Target.native()
    assert 1 < unit_gops("fma_gflops", 1, 0.05) < 5000
    units = {"vnni_gops": "avx512_vnni", "amx_gops": "amx_int8", "bf16_gflops": "avx512_bf16"}
    units["words_gops"] = "avx2"
    # 0 without; the slowest, of bfloat16 on an Intel Xeon, had 87.
    for unit, feature in units.items():
        assert (unit_gops(unit, 1, 0.05) > 10) == here.has(feature)


_AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512vnni", "-mavx512bf16"]


@pytest.mark.parametrize(
    ("unit", "flags", "instruction", "chains"),
    [
        ("dot512", _AVX512, "vpdpbusd", 16),
        ("dot_bf16", _AVX512, "vdpbf16ps", 16),
        ("dot256", _AVX512, "vpdpbusd", 12),
        ("dot256", ["-mavxvnni"], "vpdpbusd", 12),
        ("words", ["-mavx2"], "vpaddd", 12),
        ("multiply_add", _AVX512, "vfmadd231ps", 12),
        ("multiply_add", ["-mavx2", "-mfma"], "vfmadd231ps", 12),
        ("multiply_add", ["-mavx"], "vaddps", 12),
        ("multiply_add", [], "addps", 12),
    ],
)
def test_a_unit_has_chains_of_their_own(
    unit: str, flags: list[str], instruction: str, chains: int
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("assembly of x86-64")
    command = [compiler(), "-O2", "-S", *flags, str(SOURCE), "-o", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = text.partition(f"\n{unit}:")[2].partition(".size")[0]
    sums = re.findall(rf"\b{instruction}\b.*(%[xyz]mm\d+)$", body, re.MULTILINE)
    assert len(sums) == len(set(sums)) == chains


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(TargetError, match=r"threads is 100000; allowed: 1 to \d+"):
        read_bandwidth_at(MIB, 100000)


def test_a_thread_that_is_bound_to_one_core_can_measure_several() -> None:
    cpus = usable_cpus()
    if len(cpus) < 2:
        pytest.skip("one core")
    # As OpenMP binds the first thread of a process.
    os.sched_setaffinity(0, cpus[:1])
    try:
        with pytest.raises(TargetError, match="threads is 2; allowed: 1 to 1"):
            read_bandwidth_at(MIB, 2, seconds=0.01)
        assert read_bandwidth_at(MIB, 2, seconds=0.01, cpus=cpus) > 0
    finally:
        os.sched_setaffinity(0, cpus)
