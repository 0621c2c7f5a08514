"""The AMX template of quantised attention: on emulated tiles, in machine code, on real tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.emulator.amx import collect, emulate
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import QuantizedDecodeAttention, operator
from wattune.schedules.cpu.quantized_attention.amx_template import AmxQuantizedAttention
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

OPERATOR = operator("quantized_decode_attention")
TEMPLATE = AmxQuantizedAttention()
NATIVE = Target.native(threads=1)
# This CPU with tiles: what the compiler emits besides them must run here.
TILED = dataclasses.replace(NATIVE, features=(*NATIVE.features, "amx_int8", "amx_tile"))
AMX = Target.parse("cpu:amx", 1)

CASES = [
    (QuantizedDecodeAttention(3, 450, 8, 2, 64, format="int8", return_lse=True), {}),
    (QuantizedDecodeAttention(2, 300, 8, 2, 128, group_size=32, key_groups="token"), {"rows": 2}),
    (
        QuantizedDecodeAttention(2, 300, 6, 2, 128, format="int2", query_tokens=2, window=150),
        {"tile": 32},
    ),
    (
        QuantizedDecodeAttention(
            2, 500, 8, 2, 128, format="int8", key_groups="token", block_size=32, max_blocks=6
        ),
        {},
    ),
    (QuantizedDecodeAttention(2, 300, 4, 1, 192, 128, sinks=True, group_size=128), {"splits": 2}),
    # Blocks of 32 numbers, more of them than tiles for them; rows in passes.
    (
        QuantizedDecodeAttention(
            2, 200, 24, 2, 192, 64, format="int2", key_groups="token", group_size=32
        ),
        {"rows": 4, "ahead": 2},
    ),
]


@pytest.mark.isa("avx512bw", "avx512vl", "avx512_vnni")
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_tiles_against_the_reference(
    problem: QuantizedDecodeAttention, knobs: dict[str, Any]
) -> None:
    assert TEMPLATE.applies(problem, TILED)
    space = TEMPLATE.space(problem, TILED)
    values = {**space.default(), **knobs}
    space.check(values)
    rng = np.random.default_rng(3)
    for draw in (OPERATOR.make_inputs, OPERATOR.verification_inputs):
        inputs = draw(problem, rng)
        got = run_kernel(problem, TILED, TEMPLATE, values, inputs, rewrite=emulate)
        counters = collect()
        assert counters.configurations == counters.releases == 1
        assert counters.dots
        assert_matches(problem, got, OPERATOR.reference(problem, inputs))


def test_channels_must_be_whole_blocks() -> None:
    assert TEMPLATE.applies(QuantizedDecodeAttention(1, 256, 4, 1, 96, 64, format="int2"), AMX)
    assert not TEMPLATE.applies(QuantizedDecodeAttention(1, 256, 4, 1, 80, 64), AMX)
    assert not TEMPLATE.applies(
        QuantizedDecodeAttention(1, 256, 4, 1, 64, format="int8"), Target.parse("cpu:vnni", 1)
    )


def test_machine_code() -> None:
    """Every product is fed by the loads that the blocks promise; tiles are not spilled."""
    import tvm

    problem = QuantizedDecodeAttention(1, 4096, 32, 8, 128, format="int8")
    values = TEMPLATE.space(problem, AMX).default()
    function = TEMPLATE.lower(problem, AMX, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(AMX.llvm()))
    text = str(module.inspect_source("asm"))
    # Of each tensor two blocks of numbers, which stay; and for two vectors of columns at a time
    # two tiles of codes, each multiplied once and never stored. Loops are unrolled once or twice.
    found = text.count("tdpbsud"), text.count("tileloadd"), text.count("tilestored")
    loops = found[2] // 2
    assert loops in (2, 3, 4, 6)
    assert found == (4 * loops, 4 * loops + 4, 2 * loops)
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1


@pytest.mark.isa("amx_tile", "amx_int8", "avx512_vnni")
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_real_tiles(problem: QuantizedDecodeAttention, knobs: dict[str, Any]) -> None:
    values = {**TEMPLATE.space(problem, NATIVE).default(), **knobs}
    rng = np.random.default_rng(0)
    for draw in (OPERATOR.make_inputs, OPERATOR.verification_inputs):
        inputs = draw(problem, rng)
        got = run_kernel(problem, NATIVE, TEMPLATE, values, inputs)
        assert_matches(problem, got, OPERATOR.reference(problem, inputs))


def test_default_with_and_without_tiles() -> None:
    problem = QuantizedDecodeAttention(1, 4096, 32, 8, 128)
    assert templates_for(problem, AMX)[0].name == TEMPLATE.name
    vnni = templates_for(problem, Target.parse("cpu:vnni", 1))[0]
    assert vnni.name == "quantized_attention_vnni"
