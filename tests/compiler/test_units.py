"""Templates say which unit may bind their kernels, and it can be measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.schedules.attention import without_tiles

from wattune.compiler.bench.units import SHARES, unit_of
from wattune.compiler.measure.limits import Limits
from wattune.ops import DecodeAttention, GroupedGemm, Problem, QuantizedDecodeAttention
from wattune.schedules.candidate import Schedule
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

AMX = Target.parse("cpu:amx", 1)
AVX2 = Target.parse("cpu:avx2", 1)
AVX_VNNI = dataclasses.replace(AVX2, features=tuple(sorted((*AVX2.features, "avx_vnni"))))
ATTENTION = DecodeAttention(1, 4096, 32, 8, 128)
QUANTIZED = QuantizedDecodeAttention(1, 4096, 32, 8, 128)

CASES: list[tuple[Problem, Target, dict[str, Any], str]] = [
    (ATTENTION, AMX, {}, ""),
    (ATTENTION, without_tiles(AMX), {}, "bf16_gflops"),
    (ATTENTION, without_tiles(AMX), {"scores": "fma"}, "fma_gflops"),
    (ATTENTION, AVX2, {}, "fma_gflops"),
    (QUANTIZED, AMX, {}, ""),
    (QUANTIZED, AVX_VNNI, {}, ""),
    (QUANTIZED, AVX2, {}, "words_gops"),
    (GroupedGemm(4, 8, 2, 64, 128), AVX2, {}, ""),
]


@pytest.mark.parametrize(("problem", "target", "knobs", "unit"), CASES, ids=str)
def test_templates_name_the_unit(
    problem: Problem, target: Target, knobs: dict[str, Any], unit: str
) -> None:
    default = default_candidate(problem, target)
    name, values = default.schedule.template, default.schedule.values
    schedule = Schedule.make(name, {**values, **knobs})
    assert unit_of(dataclasses.replace(default, schedule=schedule)) == unit


def test_units_are_limits() -> None:
    assert set(SHARES) <= {field.name for field in dataclasses.fields(Limits)}
