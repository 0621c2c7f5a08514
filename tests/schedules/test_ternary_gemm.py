"""Every template of ternary GEMM against the reference: default and sampled schedules."""

from __future__ import annotations

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.errors import ScheduleError
from wattune.ops import TernaryGemm, operator
from wattune.ops.ternary_formats import FORMATS
from wattune.schedules.cpu.ternary_gemm.layout import VectorLayout
from wattune.schedules.target import Target
from wattune.schedules.template import (
    Layout,
    Template,
    default_candidate,
    layout_of,
    templates_for,
)

OPERATOR = operator("ternary_gemm")
NATIVE = Target.native(threads=1)

# Odd sizes, tails of rows, columns, token blocks and parallel grain; every dtype and scale.
PROBLEMS = [
    TernaryGemm(1, 37, 129),
    TernaryGemm(1, 1, 1),
    TernaryGemm(5, 100, 63, dtype="bfloat16", scale="row"),
    TernaryGemm(13, 33, 340, dtype="int8"),
    TernaryGemm(9, 160, 80, dtype="int8", out_dtype="float32"),
    TernaryGemm(3, 48, 257, dtype="float16"),
]
SAMPLES = 4


def templates() -> list[Template]:
    """Return the radix-format templates this CPU can run."""
    return [t for t in templates_for(TernaryGemm(1, 8, 8), NATIVE) if "lookup" not in t.name]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("template", templates(), ids=lambda t: t.name)
def test_matches_reference(template: Template, problem: TernaryGemm) -> None:
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    expected = OPERATOR.reference(problem, inputs)
    space = template.space(problem, NATIVE)
    rng = np.random.default_rng(problem.in_features)
    for values in (space.default(), *(space.sample(rng) for _ in range(SAMPLES))):
        assert values is not None
        for tokens in {problem.tokens, max(1, problem.tokens * 2 // 3)}:
            got = run_kernel(problem, NATIVE, template, values, inputs, tokens)
            assert_matches(problem, got, expected)


@pytest.mark.parametrize("template", templates(), ids=lambda t: t.name)
def test_extreme_activations_do_not_overflow(template: Template) -> None:
    """-128 times weights of one sign over many columns is the largest sum there is."""
    problem = TernaryGemm(2, 32, 14336, dtype="int8")
    weights = np.ones((32, 14336), np.int8)
    weights[1] = -1
    inputs = {"weights": weights, "x": np.full((2, 14336), -128, np.int8)}
    inputs["x"][1] = 127
    expected = OPERATOR.reference(problem, inputs)
    for at in (0, -1):
        space = template.space(problem, NATIVE)
        counts = [knob.values for knob in space.knobs if knob.name == "accumulators"]
        if counts:
            space = space.restrict({"accumulators": counts[0][at]})
        got = run_kernel(problem, NATIVE, template, space.default(), inputs)
        assert_matches(problem, got, expected)


@pytest.mark.parametrize("template", templates(), ids=lambda t: t.name)
def test_special_activations(template: Template) -> None:
    """Zero tokens, ties of rounding and a lone large value quantise as the reference does."""
    problem = TernaryGemm(4, 20, 70)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(1))
    x = np.zeros((4, 70), np.float32)
    x[1] = np.linspace(-1, 1, 70)
    x[2, :] = 0.5 / 127  # half a unit: rounds to even, to zero
    x[2, 3] = 1.0
    x[3, 69] = 1e30  # in the tail that no whole vector covers
    inputs["x"] = x
    got = run_kernel(problem, NATIVE, template, template.space(problem, NATIVE).default(), inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize("template", templates(), ids=lambda t: t.name)
def test_two_threads(template: Template) -> None:
    problem = TernaryGemm(3, 200, 64)
    if NATIVE.cores < 2:
        pytest.skip("one core")
    target = NATIVE.with_threads(2)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(2))
    values = template.space(problem, target).default()
    got = run_kernel(problem, target, template, values, inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize("format", ["i2", "t5"])
@pytest.mark.parametrize("groups", [1, 4])
def test_pack_program_orders_what_the_format_codes(format: str, groups: int) -> None:
    """Undoing the layout in numpy gives the format's own bytes."""
    import tvm

    problem = TernaryGemm(1, 37, 129)
    weights = OPERATOR.make_inputs(problem, np.random.default_rng(4))["weights"]
    layout = VectorLayout.of(problem, format, groups)
    blob = tvm.runtime.empty((layout.bytes,), "uint8")
    pack = compile_function(layout.pack_program(problem), Target.parse("cpu:generic"))
    pack(tvm.runtime.tensor(weights), blob)

    vectors = blob.numpy().reshape(layout.blocks, layout.steps, groups, 16, 4)
    rows = vectors.transpose(0, 2, 3, 1, 4).reshape(-1, layout.steps, 4).astype(np.int64)
    powers = layout.radix ** np.arange(layout.digits)
    digits = rows[:, :, None, :] // powers[:, None] % layout.radix
    unpacked = (digits - 1).reshape(len(rows), -1)
    np.testing.assert_array_equal(unpacked[:37, :129], weights)
    assert not unpacked[37:].any()
    assert not unpacked[:, 129:].any()
    assert layout.bytes * 8 >= FORMATS[format].bits * 37 * 129


def test_a_format_fixed_by_the_caller_is_kept() -> None:
    problem = TernaryGemm(1, 64, 64, format="i2")
    assert layout_of(default_candidate(problem, NATIVE)).format == "i2"


def test_default_in_a_given_layout() -> None:
    problem = TernaryGemm(8, 64, 64)
    layout = Layout.make("i2", groups=1)
    assert layout_of(default_candidate(problem, NATIVE, layout)) == layout
    with pytest.raises(ScheduleError, match="no template reads layout i2:groups=3"):
        default_candidate(problem, NATIVE, Layout.make("i2", groups=3))


@pytest.mark.parametrize("tokens", [1, 8, 128])
def test_defaults_satisfy_constraints_in_every_layout(tokens: int) -> None:
    problem = TernaryGemm(tokens, 64, 64)
    target = Target.parse("cpu:vnni")
    for template in templates_for(problem, target):
        for _, fixed in template.layouts(problem, target):
            space = template.space(problem, target).restrict(fixed)
            space.check(space.default())


def test_counts_follow_the_schedule() -> None:
    problem = TernaryGemm(8, 4096, 4096)
    for template in templates_for(problem, NATIVE):
        space = template.space(problem, NATIVE)
        counts = template.counts(problem, NATIVE, space.default())
        sizes = template.sizes(problem, NATIVE, space.default())
        assert counts.bytes["memory"] == sizes["weight_bytes"]
        assert counts.parallelism >= 1
        assert all(value >= 0 for value in counts.operations.values())
