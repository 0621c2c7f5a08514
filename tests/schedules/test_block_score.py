"""Key bounds and block scores on CPUs: dtypes, layouts, odd sizes, unused slots, threads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of
from tests.schedules.kernels import assert_matches

from wattune.ops import BlockMinmax, BlockScore, operator
from wattune.ops.dtypes import FLOATS
from wattune.schedules.target import Target

MINMAX, SCORE = operator("block_minmax"), operator("block_score")
# The vectors of three instruction sets; two threads run the parallel loop.
AVX512 = pytest.mark.isa("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd")
TARGETS = [
    pytest.param(Target.parse("cpu:avx512"), id="avx512", marks=AVX512),
    pytest.param(Target.parse("cpu:avx2"), id="avx2", marks=pytest.mark.isa("avx2", "fma", "f16c")),
    pytest.param(Target.parse("cpu:generic"), id="generic"),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("target", TARGETS)
def test_scores_of_every_dtype(target: Target, dtype: str) -> None:
    if dtype == "float16" and not target.has("f16c") and target.arch == "x86_64":
        pytest.skip("no conversion of half precision")
    check(BlockScore(3, 700, 4, 2, 32, dtype=dtype), target)


@pytest.mark.parametrize(
    ("problem", "threads"),
    [
        (BlockScore(2, 333, 8, 1, 16), 2),
        (BlockScore(2, 333, 7, 1, 24, query_tokens=3, dtype="float32"), 1),
        (BlockScore(1, 1, 2, 2, 8), 1),
        (BlockScore(4, 1030, 8, 2, 128, 64, scale=2.0), 2),
        (BlockScore(1, 1024, 1, 1, 128, 32, query_tokens=2, dtype="float16"), 1),
    ],
    ids=str,
)
def test_scores_of_odd_sizes(problem: BlockScore, threads: int) -> None:
    check(problem, Target.native(min(threads, Target.native().cores)))


def with_slots(inputs: dict[str, Any], names: tuple[str, ...], extra: int) -> dict[str, Any]:
    """Add slots full of NaN."""
    found = dict(inputs)
    for name in names:
        shape = list(inputs[name].shape)
        shape[2] = extra
        more = np.full(shape, np.nan, inputs[name].dtype)
        found[name] = np.concatenate([inputs[name], more], 2)
    return found


@pytest.mark.parametrize("grain", [32, 64])
def test_slots_beyond_the_context_score_nothing(grain: int) -> None:
    problem = BlockScore(2, 40 * 16, 4, 2, 16)
    inputs = SCORE.make_inputs(problem, np.random.default_rng(0))
    inputs = with_slots(inputs, ("k_min", "k_max"), 71)
    expected = SCORE.reference(problem, inputs)
    assert (expected["scores"][:, :, 40:] == -np.inf).all()
    assert_matches(problem, run(problem, inputs, grain=grain), expected)


@pytest.mark.parametrize(("lanes", "prefetch"), [(4, 0), (8, 8192)])
def test_knobs_of_scores(lanes: int, prefetch: int) -> None:
    problem = BlockScore(2, 700, 4, 2, 16)
    if lanes not in values_of_knob(problem, "lanes"):
        pytest.skip("no such vectors")
    check(problem, lanes=lanes, prefetch=prefetch, grain=32)


def values_of_knob(problem: Any, name: str) -> tuple[Any, ...]:
    target = Target.native(1)
    template, _ = values_of(problem, target)
    return next(k.values for k in template.space(problem, target).knobs if k.name == name)


def test_negative_zero_and_infinite_bounds() -> None:
    problem = BlockScore(1, 16 * 20, 1, 1, 8, dtype="float32", scale=1)
    inputs = SCORE.make_inputs(problem, np.random.default_rng(0))
    inputs["q"][:] = [-1, 1, -0.0, 0.0, 2, -2, 3, -3]
    inputs["k_max"][0, 0, 3, 1] = np.inf
    inputs["k_min"][0, 0, 4, 0] = -np.inf
    inputs["k_min"][0, 0, 5, 1] = -np.inf
    expected = SCORE.reference(problem, inputs)
    assert np.isposinf(expected["scores"][0, 0, 3:5]).all()
    assert np.isfinite(expected["scores"][0, 0, 5])
    assert_matches(problem, run(problem, inputs), expected)


@pytest.mark.parametrize("query_tokens", [0, 1, 21])
@pytest.mark.parametrize(("layout", "page_size"), [("HND", 0), ("NHD", 0), ("HND", 48), ("NHD", 8)])
def test_bounds_of_every_cache(layout: str, page_size: int, query_tokens: int) -> None:
    check(BlockMinmax(3, 333, 2, 64, 16, query_tokens, "bfloat16", layout, page_size))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("target", TARGETS)
def test_bounds_of_every_dtype(target: Target, dtype: str) -> None:
    check(BlockMinmax(2, 100, 3, 72, query_tokens=0, dtype=dtype, page_size=16), target)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("head_dim", [16, 128, 256])
def test_bounds_of_odd_sizes_on_threads(head_dim: int, block_size: int) -> None:
    target = Target.native(min(2, Target.native().cores))
    check(BlockMinmax(3, 301, 2, head_dim, block_size, 0), target, grain=32)
    check(BlockMinmax(1, 1, 1, head_dim, block_size, 1), target)


@pytest.mark.parametrize("ahead", [0, 4])
def test_knobs_of_bounds(ahead: int) -> None:
    problem = BlockMinmax(2, 32 * 16 * 2 + 9, 2, 128, query_tokens=0)
    check(problem, columns=2, ahead=ahead, grain=32)


def test_blocks_beyond_the_slots_are_left_out() -> None:
    problem = BlockMinmax(2, 100, 2, 16, query_tokens=0)
    inputs = MINMAX.make_inputs(problem, np.random.default_rng(0))
    for name in ("k_min", "k_max"):
        inputs[name] = inputs[name][:, :, :3]
    assert_matches(problem, run(problem, inputs), MINMAX.reference(problem, inputs))


def test_infinities_and_zeros_are_bounds_like_others() -> None:
    problem = BlockMinmax(1, 16, 1, 8, query_tokens=0, dtype="float16")
    inputs = MINMAX.make_inputs(problem, np.random.default_rng(0))
    inputs["k_cache"][0, 0, 3] = [np.inf, -np.inf, 0, 65504, -65504, 6e-8, -6e-8, 1]
    assert_matches(problem, run(problem, inputs), MINMAX.reference(problem, inputs))


def test_row_widths_that_no_vector_holds_are_refused() -> None:
    target = Target.native(1)
    template, _ = values_of(BlockScore(1, 64, 1, 1, 16), target)
    problem = BlockScore(1, 64, 1, 1, 12)
    assert not template.applies(problem, target)
    assert template.applies(dataclasses.replace(problem, head_dim=24), target)
