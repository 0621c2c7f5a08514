"""Every template that writes a quantised cache, bit for bit against the reference."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import run_kernel

from wattune.ops import Problem, operator
from wattune.ops.kv_cache_quantize import KVCacheQuantize
from wattune.ops.quantized_kv_cache_append import QuantizedKVCacheAppend
from wattune.schedules.cpu.quantized_kv_cache import TEMPLATES
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

needs_avx512 = pytest.mark.isa("avx512f", "avx512bw", "avx512vl")
needs_avx2 = pytest.mark.isa("avx2", "f16c")
AVX512 = pytest.param("avx512", marks=needs_avx512)
AVX2 = pytest.param("avx2", marks=needs_avx2)
LEVELS = [AVX512, AVX2, "portable"]
PROFILES = {"avx512": "cpu:avx512", "avx2": "cpu:avx2", "portable": "cpu:generic"}


def template_of(problem: Problem, level: str) -> Any:
    short = {"kv_cache_quantize": "kv_quantize", "quantized_kv_cache_append": "kv_append"}
    name = f"{short[problem.operator]}_{level}"
    return next(t for t in TEMPLATES if t.name == name)


def check(
    problem: Problem, level: str, inputs: dict[str, Any], threads: int = 1, **knobs: Any
) -> dict[str, Any]:
    """Run a kernel and compare every array, also what must stay as it was; return the arrays."""
    target = Target.parse(PROFILES[level], threads)
    template = template_of(problem, level)
    space = template.space(problem, target)
    values = {**space.default(), **knobs}
    space.check(values)
    want = operator(problem.operator).reference(problem, inputs)
    got = run_kernel(problem, target, template, values, inputs)
    assert set(got) == set(want)
    for name, array in want.items():
        bits = np.dtype(f"u{array.dtype.itemsize}")
        np.testing.assert_array_equal(got[name].view(bits), array.view(bits), name)
    return got


def inputs_of(problem: Problem, seed: int = 0) -> dict[str, Any]:
    return operator(problem.operator).verification_inputs(problem, np.random.default_rng(seed))


def quantize(*sizes: Any, **fields: Any) -> KVCacheQuantize:
    return KVCacheQuantize(*sizes, **{"group_size": 32, "block_tokens": 64, **fields})


# Every format, kind of groups and dtype at every level; widths with rests of all kinds.
PROMPTS = {
    "whole units": quantize(2, 150, 2, 128),
    "a rest of four channels": quantize(2, 80, 1, 80, value_dim=32, format="int8", dtype="float16"),
    "only a rest": quantize(2, 70, 1, 16, value_dim=64, format="int2", dtype="float32"),
    "wide groups": quantize(
        2, 140, 1, 192, value_dim=128, format="int8", key_groups="token", group_size=64
    ),
    "fields off groups": quantize(
        2, 70, 1, 160, value_dim=32, key_groups="token", dtype="float16", block_tokens=32
    ),
    "fields off quads": quantize(
        1, 33, 1, 160, value_dim=32, format="int2", key_groups="token", block_tokens=32
    ),
    "one group": quantize(
        2, 200, 1, 128, format="int2", dtype="float32", group_size=128, block_tokens=128
    ),
    "more groups than an array holds": quantize(
        1, 33, 1, 544, value_dim=32, format="int8", key_groups="token", block_tokens=32
    ),
}
RUNS: list[Any] = [
    *(pytest.param(name, "avx512", marks=needs_avx512) for name in PROMPTS),
    *(
        pytest.param(name, "avx2", marks=needs_avx2)
        for name in ("whole units", "a rest of four channels", "fields off groups")
    ),
    *(
        pytest.param(name, "portable")
        for name in ("whole units", "only a rest", "fields off quads")
    ),
]


@pytest.mark.parametrize(("name", "level"), RUNS)
def test_prompts(name: str, level: str) -> None:
    check(PROMPTS[name], level, inputs_of(PROMPTS[name]))


@pytest.mark.parametrize(
    ("level", "knobs"),
    [
        pytest.param(
            "avx512",
            {"lanes": 8, "together": 4, "unroll": 2, "prefetch": 0, "grain": 1},
            marks=needs_avx512,
        ),
        ("portable", {"lanes": 8, "together": 8, "grain": 16}),
    ],
)
def test_other_schedules(level: str, knobs: dict[str, Any]) -> None:
    problem = quantize(2, 150, 2, 112, value_dim=32)
    check(problem, level, inputs_of(problem), **knobs)


@pytest.mark.parametrize("level", [AVX512, "portable"])
def test_lengths_and_threads(level: str) -> None:
    """No token, one, a block but one, a block, one more, all; poison after the end."""
    lengths = [0, 1, 31, 32, 33, 100]
    problem = quantize(len(lengths), 100, 1, 64, value_dim=32, block_tokens=32)
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(1))
    inputs["seq_lens"] = np.array(lengths, np.int32)
    for request, length in enumerate(lengths):
        for name in ("k", "v"):
            inputs[name][request, length:] = np.nan
    got = check(problem, level, inputs, threads=2 if level == "portable" else 1)
    for name in ("k_params", "v_params"):
        assert np.isfinite(got[name]).all()
    for name in ("k_codes", "v_codes", "k_residual"):
        assert got[name][0].tobytes() == inputs[name][0].tobytes()


@pytest.mark.parametrize(
    ("level", "dtype"),
    [
        pytest.param("avx512", "float32", marks=needs_avx512),
        pytest.param("avx2", "float16", marks=needs_avx2),
        ("portable", "float32"),
        ("portable", "float16"),
    ],
)
def test_hard_values(level: str, dtype: str) -> None:
    """Infinities, ranges that vanish in float16, subnormal scales, ties, signed zeros."""
    problem = quantize(1, 32, 1, 64, dtype=dtype, block_tokens=32, key_groups="token")
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(2))
    with np.errstate(over="ignore"):
        for name in ("k", "v"):
            rows = inputs[name][0, :, 0]
            rows[0] = np.inf
            rows[1, ::2] = -np.inf
            rows[2, :5] = [1e6, -1e6, 65504, -65504, 65519]
            rows[3] = 1 + np.arange(64) * 2.0**-12
            rows[4] = np.arange(64) * 1e-7
            rows[5] = np.arange(64) * 2.0**-24
            rows[6] = -np.arange(64) * 1e-9
            rows[7] = (np.arange(64) % 31) / 2
            rows[8] = 0
            rows[9] = 60000 + np.arange(64)
            rows[10] = 1000.3
            rows[11] = rows[11] * 1e-5
            rows[12] = 2.0**-14 * (1 - np.arange(64) * 2.0**-10)
        inputs["k"][0, :, 0, 40] *= 300
        check(problem, level, inputs)


@pytest.mark.parametrize(
    ("level", "fields"),
    [
        pytest.param("avx512", {"query_tokens": 32}, marks=needs_avx512),
        pytest.param("avx2", {"format": "int8", "key_groups": "token"}, marks=needs_avx2),
        ("portable", {"format": "int2", "dtype": "float16", "query_tokens": 3}),
    ],
)
def test_appending(level: str, fields: dict[str, Any]) -> None:
    problem = QuantizedKVCacheAppend(8, 100, 2, 64, group_size=32, block_tokens=32, **fields)
    inputs = inputs_of(problem)
    most = problem.query_tokens
    inputs["seq_lens"] = np.array([100, 96, 1, 0, 97, 64 + most // 2, 31, 32], np.int32)
    check(problem, level, inputs)


@needs_avx512
def test_appending_in_threads() -> None:
    problem = QuantizedKVCacheAppend(3, 96, 2, 32, group_size=32, block_tokens=32, query_tokens=2)
    check(problem, "avx512", inputs_of(problem), threads=2, copy="parallel")


@needs_avx512
def test_steps_equal_the_whole_prompt() -> None:
    """Kernels one after the other across two boundaries, against the kernel of whole prompts."""
    whole = quantize(1, 66, 2, 64, block_tokens=32)
    inputs = operator(whole.operator).make_inputs(whole, np.random.default_rng(5))
    state = {name: inputs[name] for name in inputs if name not in ("k", "v", "seq_lens")}
    step = QuantizedKVCacheAppend(1, 66, 2, 64, group_size=32, block_tokens=32, query_tokens=3)
    target = Target.parse("cpu:avx512")
    template = template_of(step, "avx512")
    values = template.space(step, target).default()
    for length in range(3, 67, 3):
        new = {name: inputs[name][:, length - 3 : length] for name in ("k", "v")}
        lengths = {"seq_lens": np.array([length], np.int32)}
        if length % 32 > 3 and length < 66:
            # A plain copy: the reference is as good and needs no compiler.
            state = operator(step.operator).reference(step, {**new, **state, **lengths})
        else:
            state = run_kernel(step, target, template, values, {**new, **state, **lengths})
    got = check(whole, "avx512", inputs)
    for name in ("k_codes", "k_params", "v_codes", "v_params"):
        np.testing.assert_array_equal(state[name], got[name], name)
    for name in ("k_residual", "v_residual"):
        assert state[name][:, :, :2].tobytes() == got[name][:, :, :2].tobytes()


@pytest.mark.parametrize("profile", ["cpu:generic", "cpu:avx2", "cpu:avx512"])
def test_no_call_to_a_conversion(profile: str) -> None:
    """float16 must not become a call of the compiler's run-time library."""
    target = Target.parse(profile)
    problem = quantize(1, 64, 1, 32, dtype="float16")
    template = templates_for(problem, target)[0]
    values = template.space(problem, target).default()
    module = compile_module(template.lower(problem, target, values), target)
    called = set(re.findall(r"\b(?:callq?|jmp)\s+(\w+)", module.inspect_source("asm")))
    assert not {name for name in called if re.search("hf|half|gnu|nearbyint|rint|Alloc", name)}


def compile_module(function: Any, target: Target) -> Any:
    import tvm

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.tirx.build(module, tvm.target.Target(target.llvm()))


def test_the_default_template_is_that_of_the_widest_vectors() -> None:
    problem = quantize(1, 64, 1, 32)
    append = QuantizedKVCacheAppend(1, 64, 1, 64)
    for level, profile in PROFILES.items():
        target = Target.parse(profile)
        assert templates_for(problem, target)[0].name == f"kv_quantize_{level}"
        assert templates_for(append, target)[0].name == f"kv_append_{level}"
        for one in (problem, append):
            template: Any = templates_for(one, target)[0]
            values = template.space(one, target).default()
            counts = template.counts(one, target, values)
            work = operator(one.operator).work(one)
            assert counts.bytes["memory"] == pytest.approx(work.bytes, rel=0.01)
