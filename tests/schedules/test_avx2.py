"""AVX2 templates of ternary GEMM, with and without AVX-VNNI, and the decoding of every byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.ops import TernaryGemm, operator
from wattune.ops.operator import Argument
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.avx2 import Avx2I2, Avx2T5
from wattune.schedules.cpu.ternary_gemm.decode import (
    Digits,
    decode_t5_in_lanes,
    digits_i2,
    digits_t5,
)
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.target import Target
from wattune.schedules.template import Template, templates_for

OPERATOR = operator("ternary_gemm")
AVX2 = Target.parse("cpu:avx2")
AVX_VNNI = dataclasses.replace(AVX2, features=(*AVX2.features, "avx_vnni"))

TARGETS = [
    pytest.param(AVX2, id="avx2", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(AVX_VNNI, id="avx_vnni", marks=pytest.mark.isa("avx2", "fma", "avx_vnni")),
]
TEMPLATES = [pytest.param(template, id=template.name) for template in (Avx2I2(), Avx2T5())]
# Tails of rows, columns, int16 spans and token blocks; every dtype and scale.
PROBLEMS = [
    TernaryGemm(1, 37, 129, dtype="int8"),
    TernaryGemm(9, 100, 1300, dtype="bfloat16", scale="row"),
    TernaryGemm(33, 20, 340),
    TernaryGemm(8, 64, 704, dtype="int8", out_dtype="float32"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("target", TARGETS)
def test_matches_reference(target: Target, template: Template, problem: TernaryGemm) -> None:
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    expected = OPERATOR.reference(problem, inputs)
    space = template.space(problem, target)
    rng = np.random.default_rng(problem.in_features)
    tokens = max(1, problem.tokens * 2 // 3)
    for values in (space.default(), space.sample(rng)):
        assert values is not None
        got = run_kernel(problem, target, template, values, inputs, tokens)
        assert_matches(problem, got, expected)


@pytest.mark.parametrize("accumulators", [1, 2])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.isa("avx2", "fma")
def test_int16_sums_reach_the_limit(template: Template, accumulators: int) -> None:
    """The largest products of one sign: -128 times code 2 is -32768 after 64 pairs of a lane."""
    problem = TernaryGemm(2, 32, 5000, dtype="int8")
    inputs = {
        "weights": np.ones((32, 5000), np.int8),
        "x": np.array([[-128], [127]], np.int8).repeat(5000, axis=1),
    }
    values = template.space(problem, AVX2).restrict({"accumulators": accumulators}).default()
    got = run_kernel(problem, AVX2, template, values, inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize(
    "digits", [digits_i2(1), digits_i2(2), Digits(decode_t5_in_lanes, (0, 1, 0, 1, 0), (0, 0), 19)]
)
def test_int16_steps_are_safe_and_no_fewer_than_needed(digits: Digits) -> None:
    def largest(steps: int, chain: int) -> int:
        pairs = steps * digits.chain.count(chain)
        return pairs * 2 * 128 * (2 << digits.shift[chain])

    steps = digits.steps_in_int16()
    chains = range(digits.accumulators)
    assert all(largest(steps, chain) <= 1 << 15 for chain in chains)
    assert any(largest(steps + 1, chain) > 1 << 15 for chain in chains)


def decoded(decode: Callable[[Any], list[Any]], digits: int, lanes: int) -> np.ndarray[Any, Any]:
    """Return what all 256 byte values decode to: [digit, byte]."""
    import tvm

    source = Argument("code", (256,), "uint8", "packed")
    found = Argument("digits", (digits * 256,), "uint8", "packed")

    def body(tensors: Tensors) -> None:
        for at in range(0, 256, lanes):
            parts = decode(vector.load_bytes(tensors["code"], at, lanes))
            for d, codes in enumerate(parts):
                vector.store(tensors["digits"], [d * 256 + at], codes)

    target = AVX2 if lanes == 32 else Target.parse("cpu:vnni")
    codes = tvm.runtime.tensor(np.arange(256, dtype=np.uint8))
    result = tvm.runtime.empty((digits * 256,), "uint8")
    compile_function(tensor_program((source, found), {}, body), target)(codes, result)
    return np.asarray(result.numpy()).reshape(digits, 256)


T5_IN_LANES = Digits(decode_t5_in_lanes, (0,) * 5, (0,), 19)


@pytest.mark.parametrize(
    ("digits", "radix", "lanes"),
    [
        pytest.param(digits_i2(1), 4, 32, id="i2", marks=pytest.mark.isa("avx2", "fma")),
        pytest.param(digits_i2(2), 4, 32, id="i2-2", marks=pytest.mark.isa("avx2", "fma")),
        pytest.param(digits_i2(4), 4, 32, id="i2-4", marks=pytest.mark.isa("avx2", "fma")),
        pytest.param(T5_IN_LANES, 3, 32, id="t5-lanes", marks=pytest.mark.isa("avx2", "fma")),
        pytest.param(digits_t5(1), 3, 64, id="t5", marks=pytest.mark.isa("avx512vbmi")),
        pytest.param(digits_t5(2), 3, 64, id="t5-2", marks=pytest.mark.isa("avx512vbmi")),
        pytest.param(digits_t5(4), 3, 64, id="t5-4", marks=pytest.mark.isa("avx512vbmi")),
    ],
)
def test_every_code_decodes(digits: Digits, radix: int, lanes: int) -> None:
    """Each digit has its value, in the place that its accumulator's shift undoes."""
    count = len(digits.chain)
    got = decoded(digits.decode, count, lanes)
    valid = np.arange(radix**count)
    for d, chain in enumerate(digits.chain):
        expected = valid // radix**d % radix << digits.shift[chain]
        np.testing.assert_array_equal(got[d, valid], expected, err_msg=f"digit {d}")


@pytest.mark.parametrize(
    ("target", "instruction", "absent"),
    [(AVX2, "vpmaddubsw", "vpdpbusd"), (AVX_VNNI, "vpdpbusd", "vpmaddubsw")],
    ids=["avx2", "avx_vnni"],
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_machine_code(template: Template, target: Target, instruction: str, absent: str) -> None:
    import tvm

    problem = TernaryGemm(1, 256, 1280, dtype="int8")
    values = template.space(problem, target).default()
    function = template.lower(problem, target, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(target.llvm()))
    text = module.inspect_source("asm")
    assert instruction in text
    assert absent not in text
    assert "%zmm" not in text


def test_offered_where_nothing_wider_is() -> None:
    problem = TernaryGemm(1, 4096, 4096)
    assert [t.name for t in templates_for(problem, AVX2)][:2] == ["avx2_i2", "avx2_t5"]
    wider = templates_for(problem, Target.parse("cpu:vnni"))
    assert not [t.name for t in wider if t.name.startswith("avx2")]
