"""The parts of measuring: memory, rotation, timing plan, comparison, meters, affinity."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wattune.compiler.measure.affinity import divide, openmp_environment
from wattune.compiler.measure.cases import Binder, Recent, smaller
from wattune.compiler.measure.ffi import Call
from wattune.compiler.measure.memory import Guarded, pages
from wattune.compiler.measure.meters import open_meter
from wattune.compiler.measure.pool import Pool, cold_footprint, stride_of
from wattune.compiler.measure.timing import Plan, Timer, plan, summary, too_slow
from wattune.compiler.measure.verify import difference
from wattune.errors import MeasureError
from wattune.ops import QuantizedDecodeAttention, TernaryGemm, Tolerance
from wattune.schedules import host
from wattune.schedules.target import Target

MIB = 1 << 20
EXACT = Tolerance(0.0, 0.0, "exact")
LOOSE = Tolerance(0.1, 1e-3, "loose")


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 5000])
@pytest.mark.parametrize("alignment", [1, 4, 64])
def test_guarded_memory_is_aligned_and_ends_before_its_guard(size: int, alignment: int) -> None:
    buffer = Guarded(size, writable=True, alignment=alignment)
    assert buffer.address % alignment == 0
    assert buffer.data.nbytes == size
    buffer.data[:] = 1
    assert buffer.intact()
    ctypes.memset(buffer.address + size, 1, 1)
    assert not buffer.intact()


def test_read_only_guarded_memory_ends_at_the_page() -> None:
    tight = Guarded(100, writable=False, alignment=4)
    assert (tight.address + 100) % 4096 == 0
    assert tight.intact()


def test_strides_are_odd_numbers_of_cache_lines() -> None:
    for size in (1, 64, 128, 4 * MIB, 4 * MIB + 1):
        stride = stride_of(size)
        assert stride >= size
        assert stride % 128 == 64


def test_the_pool_tiles_what_is_drawn_and_forgets_other_operators() -> None:
    pool, drawn = Pool(), []

    def fill(count: int) -> np.ndarray:
        drawn.append(count)
        return np.arange(count, dtype=np.uint8)

    first = pool.copies("op", "weight", 1000, 100, fill)
    assert len(first.addresses) == 100
    memory = (ctypes.c_uint8 * 1000).from_address(int(first.addresses[-1]))
    assert len(set(memory)) > 200, "the last copy is filled too"
    again = pool.copies("op", "weight", 500, 150, fill)
    assert again.addresses[0] == first.addresses[0], "a smaller rotation views the same memory"
    assert len(drawn) == 1
    pool.copies("op", "weight", 1000, 200, fill)
    pool.copies("other", "weight", 1000, 10, fill)
    assert len(drawn) == 3


def test_large_regions_leave_room_for_other_layouts() -> None:
    pool, drawn = Pool(), []

    def fill(count: int) -> np.ndarray:
        drawn.append(count)
        return np.zeros(count, dtype=np.uint8)

    for size in (MIB, MIB + 5 * 64, MIB // 2, MIB - 64):
        pool.copies("op", "weight", size, 126 * MIB // stride_of(size), fill)
    assert len(drawn) == 1


def test_views_overlap_and_stay_inside() -> None:
    fill = lambda count: np.zeros(count, np.uint8)  # noqa: E731
    pool = Pool()
    views = pool.views("op", "cache", 3 * MIB, 100, 2 * MIB, fill).addresses
    base = pool.copies("op", "cache", 1, 1, fill).addresses[0]
    assert len(set(views.tolist())) == 100
    assert views.min() >= base
    assert views.max() < base + 2 * MIB
    assert (np.diff(np.sort(views)) > 2 * MIB // 300).all(), "evenly spread"
    assert (views % 64 == base % 64).all()


def test_cold_footprint_leaves_the_caches_and_fits_the_memory() -> None:
    assert cold_footprint(32 * MIB, 64 << 30) == 512 * MIB
    assert cold_footprint(480 * MIB, 64 << 30) == 960 * MIB
    assert cold_footprint(480 * MIB, 1 << 30) == 256 * MIB


def test_plans() -> None:
    assert plan(1e-3, 0.1, None) == Plan(100, 1)
    assert plan(1e-2, 0.1, None) == Plan(15, 1), "at least 15 samples"
    assert plan(1e-2, 0.1, 8) == Plan(10, 1), "or the budget, where a rotation is shorter"
    assert plan(1e-1, 0.1, 8) == Plan(8, 1), "or one rotation"
    assert plan(1e-7, 0.1, None).batch == 40, "short calls are timed together"
    assert too_slow(6e-3, 1e-3)
    assert not too_slow(4e-3, 1e-3)
    assert not too_slow(4e-3, None)


def test_a_summary_keeps_minimum_median_and_maximum() -> None:
    samples = np.random.default_rng(0).exponential(size=1001)
    kept = summary(samples)
    assert len(kept) == 31
    assert kept[0] == samples.min()
    assert kept[-1] == samples.max()
    assert kept[15] == pytest.approx(np.median(samples))
    assert summary(samples[:5]) == tuple(samples[:5])


def test_the_timer_rotates_over_all_copies_and_goes_on_where_it_stopped() -> None:
    """A callback stands in for a kernel: it sees where its argument lies."""
    seen: list[int] = []
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
    )

    def look(self: int, arguments: int, count: int, result: int) -> int:
        tensor = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_uint64))[1]
        seen.append(ctypes.cast(tensor, ctypes.POINTER(ctypes.c_uint64))[0])
        return 0

    function = prototype(look)
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    call = Call([(4096, "uint8", (64,))])
    copies = Pool().copies("op", "weight", 64, 4, lambda n: np.zeros(n, np.uint8))
    timer = Timer(address, call, [(0, copies)], position=0.5)
    assert len(timer.run(3, batch=2)) == 3
    expected = [int(copies.addresses[i % 4]) for i in range(2, 8)]
    assert seen == expected
    assert timer.position == 0.0
    fails = prototype(lambda *arguments: -1)
    broken = Timer(ctypes.cast(fails, ctypes.c_void_p).value or 0, call, [])
    with pytest.raises(MeasureError, match="answered with an error"):
        broken.run(1)


def test_difference_names_the_first_wrong_element() -> None:
    right = np.arange(6, dtype=np.int32).reshape(2, 3)
    wrong = right.copy()
    assert difference(wrong, right, EXACT) == ""
    wrong[1, 1] = 9
    assert difference(wrong, right, EXACT) == "[1, 1] is 9, expected 4; 1 of 6 wrong"


def test_difference_of_floats_takes_the_tolerance_and_no_nan() -> None:
    right = np.array([1.0, 0.0, np.inf], dtype=np.float32)
    assert difference(np.array([1.05, 5e-4, np.inf], np.float32), right, LOOSE) == ""
    assert "[0] is 1.25" in difference(np.array([1.25, 0, np.inf], np.float32), right, LOOSE)
    assert "[1] is nan" in difference(np.array([1, np.nan, np.inf], np.float32), right, LOOSE)
    assert "[2] is 7" in difference(np.array([1, 0, 7], np.float32), right, LOOSE)


@pytest.mark.parametrize(("upper", "size"), [(1, 1), (2, 1), (3, 1), (8, 5), (16, 9), (128, 85)])
def test_the_smaller_size_is_odd_and_inside_the_bucket(upper: int, size: int) -> None:
    assert smaller(TernaryGemm(upper, 8, 8)).tokens == size


def test_a_size_that_a_problem_does_without_stays_so() -> None:
    dense = QuantizedDecodeAttention(4, 256, 8, 2, 64)
    assert smaller(dense).sizes == {"batch": 1, "context": 169, "max_blocks": 0}


def test_bound_calls_share_inputs_and_poison_outputs() -> None:
    binder, problem = Binder(seed=3), TernaryGemm(2, 5, 7, scale="row", dtype="int8")
    scaled = TernaryGemm(2, 5, 7, scale="row")
    with pytest.raises(MeasureError, match="no pack program makes weight"):
        binder.bind(problem, None, {"weight_bytes": 64, "workspace_bytes": 64})
    case = binder._case(scaled, hard=False)
    argument = next(a for a in _arguments(scaled) if a.name == "weight_scale")
    first = binder._tensor(case, argument, (5,), None, False)
    assert first is binder._tensor(case, argument, (5,), None, False)
    np.testing.assert_array_equal(first.memory.read().view(np.float32), case.values["scale"])
    output = next(a for a in _arguments(scaled) if a.name == "y")
    poisoned = binder._tensor(case, output, (2, 5), None, True)
    assert np.isnan(poisoned.memory.read().view(np.float32)).all()


def _arguments(problem: TernaryGemm) -> tuple:  # type: ignore[type-arg]
    from wattune.ops import operator

    return operator(problem.operator).arguments(problem)


def test_recent_values_are_kept_by_bytes() -> None:
    made: list[str] = []

    def maker(name: str, size: int) -> Callable[[], tuple[str, int]]:
        def make() -> tuple[str, int]:
            made.append(name)
            return name, size

        return make

    recent: Recent[str] = Recent(10)
    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4), ("big", 99)):
        assert recent.get(name, maker(name, size)) == name
    assert made == ["a", "b", "c", "b", "big"]


def rapl_zone(root: Path, name: str, label: str, energy: int) -> Path:
    zone = root / name
    zone.mkdir()
    (zone / "name").write_text(f"{label}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    return zone


def test_rapl_adds_packages_and_memory_and_survives_a_wrap(tmp_path: Path) -> None:
    first = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = rapl_zone(tmp_path, "intel-rapl:1", "package-1", 5)
    core = rapl_zone(tmp_path, "intel-rapl:0:0", "core", 5)
    memory = rapl_zone(tmp_path, "intel-rapl:0:1", "dram", 5)
    meter = open_meter("cpu", tmp_path)
    assert meter is not None
    assert meter.source == "rapl"
    before = meter.joules()
    (first / "energy_uj").write_text("100000\n")
    (second / "energy_uj").write_text("50005\n")
    (core / "energy_uj").write_text("999999\n")
    (memory / "energy_uj").write_text("30005\n")
    assert meter.joules() - before == pytest.approx(0.28)


def test_without_a_counter_there_is_no_meter(tmp_path: Path) -> None:
    assert open_meter("cpu", tmp_path / "nothing") is None
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    assert open_meter("cpu", tmp_path) is None


def test_measuring_and_building_share_no_core_where_there_are_enough() -> None:
    assert divide([0, 1, 2, 3], 1) == ([1], [0, 2, 3])
    assert divide([0, 1, 2, 3], 3) == ([1, 2, 3], [0])
    assert divide([0, 1], 2) == ([0, 1], [])
    environment = openmp_environment([4, 6])
    assert environment["OMP_PLACES"] == "{4},{6}"
    assert environment["OMP_NUM_THREADS"] == "2"


def test_pages_are_zero_and_aligned() -> None:
    memory = pages(3 * MIB, huge=True)
    assert memory.ctypes.data % (2 * MIB) == 0
    assert len(memory) == 3 * MIB
    assert not memory.any()


def test_the_fingerprint_names_device_and_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.native(1)
    here = host.fingerprint(target)
    assert here == host.fingerprint(target)
    assert re.fullmatch(r"[a-z0-9.-]+-[0-9a-f]{12}", here)
    monkeypatch.setattr(host, "device_name", lambda: "Other CPU @ 3 GHz (6-1-2)")
    other = host.fingerprint(target)
    assert other.startswith("other-cpu-3-ghz-")
    versions = {**host.toolchain(), "apache-tvm": "99"}
    monkeypatch.setattr(host, "toolchain", lambda: versions)
    assert host.fingerprint(target) not in (here, other)
