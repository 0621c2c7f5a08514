"""Attention to quantised caches against the dequantised reference, on poisoned caches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import Compiled, ragged, without_tiles
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.ops import QuantizedDecodeAttention, operator
from wattune.schedules.cpu.quantized_attention.product import PairProduct, Product
from wattune.schedules.cpu.quantized_attention.templates import (
    Avx2Attention,
    PortableAttention,
    VnniAttention,
)
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

OPERATOR = operator("quantized_decode_attention")
NATIVE = Target.native(threads=1)
# This CPU without tiles.
VECTORS = without_tiles(NATIVE)
WITHOUT = tuple(f for f in VECTORS.features if not f.startswith("avx512") and f != "gfni")
AVX_VNNI = dataclasses.replace(VECTORS, features=WITHOUT)
AVX2 = dataclasses.replace(VECTORS, features=tuple(f for f in WITHOUT if f != "avx_vnni"))
WITHOUT_VNNI = dataclasses.replace(
    VECTORS, features=tuple(f for f in VECTORS.features if f not in ("avx_vnni", "avx512_vnni"))
)
GENERIC = Target.parse("cpu:generic", 1)


def problem(heads: int, kv_heads: int, head_dim: int, **fields: Any) -> QuantizedDecodeAttention:
    return QuantizedDecodeAttention(6, 1, heads, kv_heads, head_dim, **fields)


def lengths(block_tokens: int) -> tuple[int, ...]:
    """Return an empty request and those around full blocks."""
    n = block_tokens
    return (n + 1, 0, 1, n - 1, n, 3 * n + 5)


# Formats, kinds and sizes of groups, GQA, query tokens, widths, everything else, knobs.
CASES: list[tuple[QuantizedDecodeAttention, dict[str, Any]]] = [
    (problem(8, 2, 64, format="int8", block_tokens=64, return_lse=True), {}),
    (problem(4, 4, 64, group_size=32, block_tokens=64, sinks=True, return_lse=True), {"tile": 64}),
    (problem(7, 1, 64, value_dim=128, format="int2", group_size=128), {"rows": 3, "unroll": 2}),
    (
        problem(8, 1, 96, value_dim=32, format="int8", key_groups="token", group_size=32),
        {"tile": 32, "rows": 4},
    ),
    (
        problem(16, 1, 192, value_dim=128, key_groups="token", query_tokens=3, dtype="float16"),
        {"rows": 8, "ahead": 4},
    ),
    (problem(8, 2, 128, format="int2", key_groups="token", query_tokens=4), {"columns": 1}),
    (
        problem(4, 1, 80, value_dim=64, window=100, query_tokens=2, soft_cap=30.0),
        {"tile": 16, "ahead": 0},
    ),
    (
        problem(4, 2, 64, format="int8", window=3, group_size=32, block_tokens=32, dtype="float32"),
        {"tile": 32},
    ),
]


@pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_lengths(problem: QuantizedDecodeAttention, knobs: dict[str, Any]) -> None:
    compiled = Compiled(problem, VECTORS, **knobs)
    assert type(compiled.template) is VnniAttention
    compiled.check(ragged(problem, lengths(problem.block_tokens)))


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_lengths_on_avx2(problem: QuantizedDecodeAttention, knobs: dict[str, Any]) -> None:
    knobs = {**knobs, "rows": min(4, knobs.get("rows", 1))}
    compiled = Compiled(problem, AVX2, **knobs)
    assert type(compiled.template) is Avx2Attention
    compiled.check(ragged(problem, lengths(problem.block_tokens)))


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize("format", ["int8", "int4", "int2"])
@pytest.mark.parametrize(("head_dim", "key_groups"), [(256, "token"), (512, "channel")])
def test_the_largest_sums_fit_on_avx2(format: str, head_dim: int, key_groups: str) -> None:
    """All codes at their largest, all numbers of a query alike: sums reach what 32 bits hold."""
    problem = QuantizedDecodeAttention(
        *(1, 256, 4, 1, head_dim),
        value_dim=64,
        format=format,
        key_groups=key_groups,
        group_size=64 if key_groups == "channel" else 128 // 2,
        return_lse=True,
    )
    inputs = ragged(problem, (256,))
    inputs["k_codes"][...] = inputs["v_codes"][...] = 255
    signs = np.array([1, -1, 1, -1], np.float32)[:, None]
    inputs["q"] = (np.ones((1, 1, 4, head_dim), np.float32) * signs).astype(inputs["q"].dtype)
    # Scales that differ by token or channel would not give the largest numbers everywhere.
    inputs["k_params"][..., 0, :] = 4 / (2**problem.quantized.bits - 1)
    Compiled(problem, AVX2).check(inputs)


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize("key_groups", ["channel", "token"])
def test_outliers_on_avx2(key_groups: str) -> None:
    """A channel of queries eight times the others, scales that differ by a thousand."""
    problem = QuantizedDecodeAttention(
        *(2, 300, 6, 2, 128), key_groups=key_groups, dtype="float32", return_lse=True
    )
    inputs = ragged(problem, (300, 129))
    inputs["q"][..., 5] = 0
    inputs["q"][..., 70] *= 8
    scales = inputs["v_params"]
    scales[..., 0, ::16] = scales[..., 0, ::16] * np.float16(0.001)
    if key_groups == "channel":
        inputs["k_params"][..., 5] *= np.float16(1000)
    Compiled(problem, AVX2).check(inputs)


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize("times", [30, 100])
def test_a_channel_of_queries_far_above_the_others_on_avx2(times: int) -> None:
    """Numbers of 16 bits count in the row's greatest: others lose five to seven of their bits."""
    problem = QuantizedDecodeAttention(
        *(2, 300, 6, 2, 128), format="int8", dtype="float32", return_lse=True
    )
    inputs = ragged(problem, (300, 129))
    inputs["q"][..., 70] *= times
    Compiled(problem, AVX2).check(inputs)


@pytest.mark.parametrize("target", [None, GENERIC])
def test_heads_of_one_vector(target: Target | None) -> None:
    problem = QuantizedDecodeAttention(2, 300, 4, 2, 16, 32, group_size=32, format="int8")
    Compiled(problem, target or Target.native(1)).check(ragged(problem, (300, 129)))


TARGETS = [
    (AVX_VNNI, "int8", "token", Avx2Attention, ("avx_vnni",)),
    (AVX2, "int2", "channel", Avx2Attention, ("avx2", "fma")),
    (AVX2, "int8", "channel", Avx2Attention, ("avx2", "fma")),
    (GENERIC, "int4", "token", PortableAttention, ()),
]


@pytest.mark.parametrize(
    ("target", "format", "key_groups", "template"),
    [pytest.param(*case[:-1], marks=pytest.mark.isa(*case[-1])) for case in TARGETS],
)
def test_other_targets(target: Target, format: str, key_groups: str, template: Any) -> None:
    problem = QuantizedDecodeAttention(
        *(6, 1, 6, 2, 64),
        format=format,
        key_groups=key_groups,
        group_size=32,
        block_tokens=64,
        return_lse=True,
    )
    compiled = Compiled(problem, target)
    assert isinstance(compiled.template, template)
    compiled.check(ragged(problem, lengths(64)))


class PairAttention(Avx2Attention):
    """Products by way of pairs wherever there is AVX2: few CPUs have AVX-512 and no VNNI."""

    def product(self, problem: QuantizedDecodeAttention, target: Target) -> Product:
        """Return them."""
        return PairProduct(8)


PAIRS = [
    pytest.param(PairAttention(), AVX2, marks=pytest.mark.isa("avx2", "f16c", "fma"), id="avx2"),
    pytest.param(
        Avx2Attention(),
        WITHOUT_VNNI,
        marks=pytest.mark.isa("avx512bw", "avx512dq", "avx512vl"),
        id="avx512",
    ),
]


@pytest.mark.parametrize(("template", "target"), PAIRS)
@pytest.mark.parametrize(("format", "key_groups"), [("int4", "token"), ("int2", "channel")])
def test_products_by_way_of_pairs(
    template: Avx2Attention, target: Target, format: str, key_groups: str
) -> None:
    """Codes and numbers at their largest too: a pair of products must fit 16 bits."""
    problem = QuantizedDecodeAttention(
        *(2, 256, 6, 2, 64), format=format, key_groups=key_groups, return_lse=True
    )
    assert isinstance(template.product(problem, target), PairProduct)
    assert template.applies(problem, target)
    values = template.space(problem, target).default()
    function = template.lower(problem, target, values)
    assert "vpmaddubsw" in machine_code(function, target)
    kernel = compile_function(function, target)
    inputs = ragged(problem, (256, 130))
    largest = {name: array.copy() for name, array in inputs.items()}
    largest["k_codes"][...] = largest["v_codes"][...] = 255
    largest["q"][...] = np.sign(largest["q"])
    for drawn in (inputs, largest):
        got = run_kernel(problem, target, template, values, drawn, compiled=kernel)
        assert_matches(problem, got, OPERATOR.reference(problem, drawn))


def test_portable_on_wide_registers() -> None:
    problem = QuantizedDecodeAttention(3, 200, 4, 2, 64, format="int2", query_tokens=2)
    template = PortableAttention()
    values = template.space(problem, VECTORS).default()
    inputs = ragged(problem, (200, 0, 129))
    got = run_kernel(problem, VECTORS, template, values, inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


@pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_batch_changes_no_bit(threads: int) -> None:
    if threads > Target.native().cores:
        pytest.skip("one core")
    problem = QuantizedDecodeAttention(6, 1, 8, 2, 64, block_tokens=64, return_lse=True)
    compiled = Compiled(problem, Target.native(threads), splits=4, split_tokens=256, tile=64)
    inputs = ragged(problem, (700, 0, 1, 65, 1100, 128))
    together = compiled.check(inputs)
    for request in range(6):
        alone = compiled.run({name: a[request : request + 1] for name, a in inputs.items()})
        for name, found in alone.items():
            assert found.tobytes() == together[name][request : request + 1].tobytes()


@pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
@pytest.mark.parametrize("key_groups", ["channel", "token"])
def test_sampled_schedules(key_groups: str) -> None:
    problem = QuantizedDecodeAttention(3, 1, 12, 2, 64, key_groups=key_groups, query_tokens=2)
    space = VnniAttention().space(problem, VECTORS)
    rng = np.random.default_rng(len(key_groups))
    inputs = ragged(problem, (300, 5, 128))
    for _ in range(2):
        values = space.sample(rng)
        assert values is not None
        Compiled(problem, VECTORS, **values).check(inputs)


EXACT = [
    pytest.param(
        VECTORS, marks=pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni"), id="vnni"
    ),
    pytest.param(AVX2, marks=pytest.mark.isa("avx2", "f16c", "fma"), id="avx2"),
]


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("key_groups", ["channel", "token"])
def test_numbers_are_exact_to_two_to_the_minus_14(key_groups: str, target: Target) -> None:
    """One peaked score: its error is that of the query's numbers alone."""
    problem = QuantizedDecodeAttention(
        *(1, 128, 4, 1, 128), format="int8", key_groups=key_groups, dtype="float32", return_lse=True
    )
    inputs = ragged(problem, (128,))
    expected = OPERATOR.reference(problem, inputs)
    got = Compiled(problem, target).run(inputs)
    size = np.abs(inputs["q"]).sum(-1).max() * problem.scale * 2
    assert np.abs(got["lse"] - expected["lse"]).max() < size * 2.0**-14
    assert np.abs(got["out"] - expected["out"]).max() < 4 * size * 2.0**-14


@pytest.mark.parametrize("target", [VECTORS, AVX_VNNI, AVX2, GENERIC, Target.parse("cpu:amx", 4)])
@pytest.mark.parametrize("heads", [(1, 1), (7, 1), (32, 8), (128, 8)])
@pytest.mark.parametrize("query_tokens", [1, 8])
def test_defaults_are_points_of_the_space(
    target: Target, heads: tuple[int, int], query_tokens: int
) -> None:
    others: tuple[dict[str, Any], ...] = (
        {},
        {"format": "int8", "group_size": 32, "block_tokens": 96},
    )
    for fields in others:
        problem = QuantizedDecodeAttention(
            1, 4096, *heads, 128, query_tokens=query_tokens, **fields
        )
        for template in templates_for(problem, target):
            space = template.space(problem, target)
            values = space.default()
            assert values == {knob.name: knob.default for knob in space.knobs}
            found = template.counts(problem, target, values)
            assert found.operations and min(found.operations.values()) > 0
            assert template.sizes(problem, target, values)["workspace_bytes"] > 0


def machine_code(function: Any, target: Target) -> str:
    import tvm

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return str(tvm.tirx.build(module, tvm.target.Target(target.llvm())).inspect_source("asm"))


@pytest.mark.isa("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
def test_the_inner_loops_are_byte_products() -> None:
    problem = QuantizedDecodeAttention(1, 4096, 4, 1, 64)
    template = VnniAttention()
    function = template.lower(problem, VECTORS, template.space(problem, VECTORS).default())
    code = machine_code(function, VECTORS)
    assert code.count("vpdpbusd") >= 128
    assert "expf" not in code


@pytest.mark.isa("avx2", "f16c", "fma")
@pytest.mark.parametrize("format", ["int8", "int4", "int2"])
def test_the_inner_loops_are_products_of_words_on_avx2(format: str) -> None:
    problem = QuantizedDecodeAttention(1, 4096, 4, 1, 64, format=format)
    template = Avx2Attention()
    function = template.lower(problem, AVX2, template.space(problem, AVX2).default())
    code = machine_code(function, AVX2)
    assert code.count("vpmaddwd") >= 128
    assert "vpmaddubsw" not in code and "%zmm" not in code
