"""AMX templates of attention: on emulated tiles, in machine code, on real tiles."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.emulator.amx import Counters, TileFaultError, collect, emulate
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, RectifyAttention, operator
from wattune.ops.attention import Attention
from wattune.schedules.cpu.attention.amx import LOADED, QUERIES, SCORES, SUM, WEIGHT
from wattune.schedules.cpu.attention.amx_templates import (
    AmxBlockSparse,
    AmxDecodeAttention,
    AmxRectify,
)
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Template

NATIVE = Target.native(threads=1)
AMX = Target.parse("cpu:amx", 1)
# This CPU with tiles: what the compiler emits besides them must run here.
TILED = dataclasses.replace(NATIVE, features=(*NATIVE.features, "amx_bf16", "amx_tile"))

Change = Callable[[str, list[Any]], list[Any] | None]

# (problem, template, knobs that are not the default)
CASES = [
    (DecodeAttention(3, 150, 8, 2, 64, return_lse=True), AmxDecodeAttention(), {}),
    (
        DecodeAttention(2, 90, 14, 2, 32, 96, query_tokens=2, sinks=True, window=40, layout="NHD"),
        AmxDecodeAttention(),
        {"block": 32},
    ),
    (DecodeAttention(2, 70, 16, 1, 64, page_size=7, soft_cap=20.0), AmxDecodeAttention(), {}),
    (
        DecodeAttention(2, 300, 12, 2, 192, 128, page_size=16),
        AmxDecodeAttention(),
        {"rows": 3, "wake": 16, "prefetch": 16},
    ),
    (DecodeAttention(2, 500, 4, 4, 96, 32), AmxDecodeAttention(), {"splits": 4}),
    (
        BlockSparseDecodeAttention(3, 300, 8, 2, 64, block_size=16, max_blocks=7),
        AmxBlockSparse(),
        {"block": 64, "prefetch": 32, "wake": 32},
    ),
    (
        BlockSparseDecodeAttention(
            3, 100, 4, 2, 32, block_size=5, max_blocks=9, query_tokens=2, per_token=True
        ),
        AmxBlockSparse(),
        {},
    ),
    (RectifyAttention(2, 100, 8, 2, 32, query_tokens=20), AmxRectify(), {}),
]


def run(
    problem: Attention,
    template: Template,
    values: Values,
    inputs: dict[str, Any],
    change: Change | None = None,
) -> Counters:
    """Run on emulated tiles, compare with the reference, return what ran."""
    got = run_kernel(problem, TILED, template, values, inputs, rewrite=lambda f: emulate(f, change))
    counters = collect()
    assert_matches(problem, got, operator(problem.operator).reference(problem, inputs))
    return counters


@pytest.mark.isa("avx512f", "avx512bw", "avx512vl")
@pytest.mark.parametrize(("problem", "template", "knobs"), CASES, ids=str)
def test_tiles_against_the_reference(
    problem: Attention, template: Template, knobs: dict[str, Any]
) -> None:
    assert template.applies(problem, TILED)
    assert not template.applies(problem, dataclasses.replace(TILED, features=()))
    space = template.space(problem, TILED)
    values = {**space.default(), **knobs}
    space.check(values)
    op, rng = operator(problem.operator), np.random.default_rng(3)
    for draw in (op.make_inputs, op.verification_inputs):
        counters = run(problem, template, values, draw(problem, rng))
        assert counters.configurations == counters.releases == 1
        assert counters.dots


def drop_zero(name: str, operands: list[Any]) -> list[Any] | None:
    return None if name == "tilezero" else operands


def other_stride(name: str, operands: list[Any]) -> list[Any]:
    if name != "tileloadd64":
        return operands
    return [*operands[:-1], operands[-1] * 2 if int(operands[0].value) in QUERIES else operands[-1]]


def swap_operands(name: str, operands: list[Any]) -> list[Any]:
    return [operands[0], operands[2], operands[1]] if name == "tdpbf16ps" else operands


@pytest.mark.isa("avx512f", "avx512bw", "avx512vl")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_zero, "tile 0 is read before it is written|Mismatched elements"),
        (other_stride, "location mismatch|Mismatched elements"),
        (swap_operands, "tdpbf16ps"),
    ],
)
def test_mistakes_are_found(change: Change, message: str) -> None:
    problem, template = DecodeAttention(1, 64, 4, 1, 64), AmxDecodeAttention()
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(0))
    values = template.space(problem, TILED).default()
    with pytest.raises((TileFaultError, AssertionError), match=message):
        run(problem, template, values, inputs, change)


def test_machine_code() -> None:
    """Keys come from the cache as they lie; tiles are not spilled."""
    import tvm

    problem, template = DecodeAttention(1, 4096, 32, 8, 128), AmxDecodeAttention()
    values = template.space(problem, AMX).default()
    function = template.lower(problem, AMX, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(AMX.llvm()))
    text = str(module.inspect_source("asm"))
    products = set(re.findall(r"tdpbf16ps\t%tmm(\d), %tmm(\d), %tmm(\d)", text))
    scores = {(str(query), str(LOADED), str(SCORES)) for query in QUERIES}
    assert products == {(str(LOADED), str(WEIGHT), str(SUM)), *scores}
    assert set(re.findall(r"tilestored\t%tmm(\d)", text)) == {str(SCORES), str(SUM)}
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1


@pytest.mark.isa("amx_tile", "amx_bf16")
def test_real_tiles() -> None:
    from wattune.compiler.measure.amx import allow_amx

    allow_amx()
    problem, template = DecodeAttention(3, 150, 8, 2, 64), AmxDecodeAttention()
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(0))
    values = template.space(problem, NATIVE).default()
    got = run_kernel(problem, NATIVE, template, values, inputs)
    assert_matches(problem, got, op.reference(problem, inputs))
