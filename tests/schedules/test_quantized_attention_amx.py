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


def test_fields_must_be_whole_blocks() -> None:
    assert TEMPLATE.applies(QuantizedDecodeAttention(1, 256, 4, 1, 64, format="int4"), AMX)
    assert not TEMPLATE.applies(QuantizedDecodeAttention(1, 256, 4, 1, 64, format="int2"), AMX)
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
    # Keys: 4 blocks of channels, of each one tile of codes and two of numbers. Values: 4 blocks of
    # tokens (a loop, or unrolled), of each two tiles of codes and two of numbers.
    found = text.count("tdpbsud"), text.count("tileloadd")
    assert found in [(4 * 2 + steps * 4, 4 * 3 + steps * 4) for steps in (1, 4)]
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1


@pytest.mark.isa("amx_tile", "amx_int8", "avx512_vnni")
def test_real_tiles() -> None:
    from wattune.compiler.measure.amx import allow_amx

    allow_amx()
    problem = CASES[0][0]
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(0))
    values = TEMPLATE.space(problem, NATIVE).default()
    got = run_kernel(problem, NATIVE, TEMPLATE, values, inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))
