from __future__ import annotations

import dataclasses
import math
from fnmatch import fnmatchcase

import numpy as np
import pytest
from tests.cost_models.made_up import World

from wattune.cost_models.features import FEATURES, _occupancy_features, features
from wattune.cost_models.matrix import Columns, FeatureMatrix
from wattune.cost_models.prior import (
    Rates,
    default_rates,
    imbalance,
    measured_rates,
    roofline,
)
from wattune.ops import DecodeAttention, TernaryGemm
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import BlockUse, Counts, default_candidate

RATES = Rates(
    bytes={"memory": 1e9, "l3": 4e9, "l2": 8e9, "l1": 16e9},
    operations={"dot": 2e9, "alu": 4e9},
    launch=1e-6,
)
TARGET = Target("cpu", "x86_64", cores=2, threads=2, l1=32 << 10, l2=1 << 20, l3=16 << 20)


@pytest.fixture
def candidate(world: World) -> Candidate:
    values: Values = {"block": 4, "unroll": 2, "order": "row"}
    values |= {"prefetch": 0, "grain": 8, "stream": True}
    problem = TernaryGemm(tokens=1, out_features=1024, in_features=1024)
    return Candidate(problem, TARGET, Schedule.make(world.template.name, values))


def test_features_by_hand(candidate: Candidate) -> None:
    found = features(candidate, rates=RATES)
    weight = 2**18
    expected = {
        "knob.block": math.log2(5),
        "knob.order=row": 1.0,
        "knob.order=tiled": 0.0,
        "knob.stream=True": 1.0,
        "template=made_up": 1.0,
        "mode=cold": 1.0,
        "problem.tokens": 1.0,
        "problem.in_features": math.log2(1025),
        "problem.dtype=float32": 1.0,
        "target.threads": math.log2(3),
        "target.kind=cpu": 1.0,
        "bytes.memory": math.log2(1 + weight),
        "operations.dot": math.log2(1 + weight / 16),
        "tiles.rows": math.log2(257),
        "parallelism": math.log2(33),
        "registers": math.log2(3),
        "code": math.log2(9),
        "footprint/l1": math.log2(weight / (2 * (32 << 10))),
        "footprint/l3": math.log2(weight / (16 << 20)),
        "traffic/l1": 1.0,
        "intensity/dot": -4.0,
        "tasks/worker": 4.0,
        "imbalance": 0.0,
        "prior.seconds": math.log2(weight / 1e9 + 1e-6),
        "prior.bound=memory": 1.0,
        "prior.share.memory": 0.0,
        "prior.share.l1": -3.0,
        "prior.share.dot": -5.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_every_feature_is_documented_once_and_finite(candidate: Candidate) -> None:
    for mode in ("cold", "hot"):
        for name, value in features(candidate, mode).items():
            patterns = [pattern for pattern in FEATURES if fnmatchcase(name, pattern)]
            assert len(patterns) == 1, name
            assert math.isfinite(value), name


def test_roofline_by_hand() -> None:
    counts = Counts(bytes={"memory": 1e6, "l1": 4e6}, operations={"dot": 1e6}, parallelism=3)
    line = roofline(counts, TARGET, RATES)
    assert line.terms == pytest.approx({"memory": 1e-3, "l1": 0.25e-3, "dot": 0.5e-3})
    assert line.bound == "memory"
    assert line.imbalance == pytest.approx(4 / 3)
    assert line.seconds == pytest.approx(1e-3 * 4 / 3 + 1e-6)
    # Hot, a megabyte comes from the two L2 caches; two and a half from the L3.
    assert roofline(counts, TARGET, RATES, "hot").terms["memory"] == pytest.approx(1e6 / 8e9)
    large = dataclasses.replace(counts, bytes={"memory": 2.5e6})
    assert roofline(large, TARGET, RATES, "hot").terms["memory"] == pytest.approx(2.5e6 / 4e9)


@pytest.mark.parametrize(
    ("parallelism", "threads", "expected"), [(1, 2, 2.0), (2, 2, 1.0), (5, 4, 1.6), (0, 1, 1.0)]
)
def test_imbalance_by_hand(parallelism: float, threads: int, expected: float) -> None:
    target = Target("cpu", "x86_64", cores=4, threads=threads)
    assert imbalance(parallelism, target) == pytest.approx(expected)


def test_measured_rates_replace_guesses_at_each_level_s_own_footprint() -> None:
    asked: list[tuple[int, int]] = []

    def read(footprint: int, threads: int) -> float:
        asked.append((footprint, threads))
        return 1e18 / footprint

    rates = measured_rates(TARGET, read, {"dot": 3e10})
    assert {threads for _, threads in asked} == {2}
    assert rates.bytes["l1"] > rates.bytes["l2"] > rates.bytes["l3"] > rates.bytes["memory"]
    assert rates.bytes["l1"] == 1e18 / (32 << 10)
    # Whatever multiplies also adds, and half of it shuffles.
    assert rates.operations["dot"] == rates.operations["alu"] == 3e10
    assert rates.operations["shuffle"] == 1.5e10
    assert rates.operations["tile"] == default_rates(TARGET).operations["tile"]
    assert Rates.from_json(rates.to_json()) == rates


def test_disturbed_measurements_are_left_out() -> None:
    guess = default_rates(TARGET)
    rates = measured_rates(TARGET, lambda footprint, threads: 1e6, {"dot": 3e7})
    assert rates == guess


def test_columns_never_move_and_absence_is_told() -> None:
    columns = Columns(["a", "kind=x"])
    first = columns.row({"kind=x": 1.0, "a": 2.0})
    second = columns.row({"b": 3.0, "kind=y": 1.0})
    assert columns.names == ["a", "kind=x", "b", "kind=y"]
    expected = [[2.0, 1.0, np.nan, 0.0], [np.nan, 0.0, 3.0, 1.0]]
    np.testing.assert_array_equal(columns.stack([first, second]), np.array(expected, np.float32))
    assert columns.stack([]).shape == (0, 4)


def test_candidates_of_the_past_are_not_usable(candidate: Candidate) -> None:
    matrix = FeatureMatrix()
    values = candidate.schedule.values
    cuda = Target(kind="cuda", arch="sm_90a")
    assert matrix.usable(candidate)
    for changed in (
        Schedule.make("gone", values),
        Schedule.make("made_up", {**values, "block": 3}),
        Schedule.make("made_up", {"block": 4}),
    ):
        assert not matrix.usable(dataclasses.replace(candidate, schedule=changed))
    assert not matrix.usable(dataclasses.replace(candidate, target=cuda))


HOPPER = Target.parse("cuda:sm_90a")
FACTS = {
    "small.threads": 128.0,
    "small.sass.instructions": 60.0,
    "main.threads": 128.0,
    "main.registers": 127.0,
    "main.shared": 1.0,
    "main.dynamic_shared": 65534.0,
    "main.blocks_per_sm": 3.0,
    "main.sass.instructions": 1000.0,
    "main.sass.HMMA": 63.0,
}


def test_occupancy_by_hand() -> None:
    """3 blocks by registers; 2.5 waves, the last one half full."""
    block = BlockUse(blocks=2.5 * 3 * 132, threads=128, registers=168, shared=1024)
    assert _occupancy_features(block, HOPPER) == pytest.approx(
        {
            "occupancy/blocks": math.log2(3),
            "occupancy/warps": math.log2(12 / 64),
            "occupancy/waves": math.log2(2.5),
            "occupancy/last": -1.0,
        }
    )
    whole = dataclasses.replace(block, blocks=3 * 132)
    assert _occupancy_features(whole, HOPPER)["occupancy/last"] == 0.0
    assert _occupancy_features(block, dataclasses.replace(HOPPER, arch="sm_123")) == {}


def test_facts_of_a_build_are_features_where_they_are_given() -> None:
    candidate = default_candidate(DecodeAttention(16, 32768, 64, 8, 128), HOPPER)
    without, found = features(candidate), features(candidate, facts=FACTS)
    assert without == {n: v for n, v in found.items() if not n.startswith("facts.")}
    assert "occupancy/waves" in without
    expected = {
        "facts.registers": 7.0,
        "facts.shared": 16.0,
        "facts.spills": 0.0,
        "facts.local_share": 0.0,
        "facts.blocks_per_sm": 2.0,
        "facts.sass.HMMA": 6.0,
        "facts.sass.instructions": math.log2(1001),
    }
    assert {n: v for n, v in found.items() if n.startswith("facts.")} == pytest.approx(expected)
    assert features(candidate, facts={"compile_seconds": 2.0}) == without


def test_public_rates_of_gpus() -> None:
    """Those of the data sheets, for the device that a target names."""
    rates = default_rates(HOPPER)
    assert rates.bytes["memory"] == 4.8e12
    assert rates.bytes["l1"] > rates.bytes["l2"] > rates.bytes["memory"]
    h100 = dataclasses.replace(HOPPER, device="NVIDIA H100 80GB HBM3")
    assert default_rates(h100).bytes["memory"] == 3.35e12
    a100 = default_rates(Target.parse("cuda:sm_80"))
    # 312 Tflop/s, 4096 a product.
    assert a100.operations["matrix"] * 4096 == pytest.approx(312e12, rel=0.01)
    assert a100.operations["alu"] / a100.operations["special"] == 4
    unknown = default_rates(dataclasses.replace(HOPPER, arch="sm_123"))
    assert set(unknown.bytes) == set(rates.bytes)


def test_dense_decode_is_bound_by_memory() -> None:
    """At a group of 8, as every measurement of such kernels finds."""
    for arch in ("sm_80", "sm_89", "sm_90a"):
        target = Target.parse(f"cuda:{arch}")
        candidate = default_candidate(DecodeAttention(16, 32768, 64, 8, 128), target)
        assert features(candidate).get("prior.bound=memory") == 1.0, arch
