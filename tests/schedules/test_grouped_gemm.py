"""Templates of grouped GEMM and fused experts against the references."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import vectors
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.errors import ScheduleError
from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.ops.experts import poison_untouched
from wattune.schedules.cpu.grouped_gemm import TEMPLATES
from wattune.schedules.cpu.grouped_gemm.base import GATE_UP
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Template, templates_for

Inputs = Mapping[str, Any]

# Odd sizes, tails of rows and columns, more pairs than experts and fewer; every format and dtype.
PROBLEMS = [
    FusedMoe(9, 5, 3, 37, 21),
    FusedMoe(13, 4, 2, 70, 50, dtype="float32", format="int8"),
    FusedMoe(7, 9, 2, 256, 128, format="int4"),
    FusedMoe(1, 6, 1, 64, 80, dtype="float32"),
    GroupedGemm(11, 5, 3, 45, 77, dtype="float32"),
    GroupedGemm(6, 3, 2, 33, 69, format="int8"),
    GroupedGemm(5, 3, 2, 50, 384, dtype="float32", format="int4"),
]
# Lowering takes most of the time: the narrow templates get one problem of each format.
NARROW = (PROBLEMS[1], PROBLEMS[2], PROBLEMS[4])
AVX512 = pytest.mark.isa("avx512f", "avx512bw", "avx512vl", "avx512_vnni")


def marks_of(template: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return what a template needs of the machine."""
    return (AVX512,) if "avx512" in template else ()


CASES = [
    pytest.param(template, problem, id=f"{template.name}-{problem}", marks=marks_of(template.name))
    for template in TEMPLATES
    for problem in (PROBLEMS if "avx512" in template.name else NARROW)
    if template.operator == problem.operator and "amx" not in template.name
]


def target_of(template: Template, problem: Any, threads: int = 1) -> Target:
    """Return this machine, or what it has besides wider vectors."""
    native = Target.native(threads)
    return native if template.applies(problem, native) else Target.parse("cpu:avx2", threads)


def check(
    template: Template, problem: Any, target: Target, values: Values, drawn: Sequence[Inputs]
) -> None:
    """Compare a schedule with the reference on each of the inputs."""
    kernel = compile_function(template.lower(problem, target, values), target)
    op = operator(problem.operator)
    for inputs in drawn:
        got = run_kernel(problem, target, template, values, inputs, compiled=kernel)
        want = op.reference(problem, inputs)
        assert_matches(problem, got, want)
        # The tolerance of an element allows for one step of a rounding that is decided late.
        name = op.signature[-1]
        exact = want[name].astype(np.float64)
        distance = np.linalg.norm(got[name].astype(np.float64) - exact)
        assert distance <= 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(("template", "problem"), CASES)
def test_matches_reference(template: Template, problem: Any) -> None:
    target, op = target_of(template, problem), operator(problem.operator)
    space = template.space(problem, target)
    rng = np.random.default_rng(problem.tokens)
    drawn = [op.make_inputs(problem, rng), op.verification_inputs(problem, rng)]
    found = [space.default(), *([space.sample(rng)] if "avx512" in template.name else [])]
    for values in found:
        assert values is not None
        check(template, problem, target, values, drawn)


def first_template(problem: Any, threads: int = 1) -> tuple[Template, Target]:
    target = vectors(threads)
    return templates_for(problem, target)[0], target


def run(problem: Any, inputs: Inputs, threads: int = 1, **knobs: Any) -> Any:
    """Return the only output under the default schedule, with some knobs changed."""
    template, target = first_template(problem, threads)
    values = {**template.space(problem, target).default(), **knobs}
    template.space(problem, target).check(values)
    found = run_kernel(problem, target, template, values, inputs)
    return found[operator(problem.operator).signature[-1]]


# Slices of 256 columns, the last one shorter; panels that do not divide the blocks of a part.
SLICED = [
    FusedMoe(9, 3, 2, 300, 530),
    FusedMoe(9, 3, 2, 300, 530, dtype="float32", format="int8"),
    FusedMoe(9, 3, 2, 384, 640, dtype="float32", format="int4"),
    GroupedGemm(9, 3, 2, 117, 700, dtype="float32", format="int8"),
]


@pytest.mark.parametrize("problem", SLICED, ids=str)
@pytest.mark.parametrize("instructions", [pytest.param("avx512", marks=AVX512), "avx2", "portable"])
def test_slices_and_gate_beside_up(instructions: str, problem: Any) -> None:
    template = next(t for t in TEMPLATES if t.name == f"{problem.operator}_{instructions}")
    target, op = target_of(template, problem), operator(problem.operator)
    rng = np.random.default_rng(8)
    drawn = [op.make_inputs(problem, rng), op.verification_inputs(problem, rng)]
    values = {**template.space(problem, target).default(), "columns": 256, "panel": 4, "groups": 1}
    values |= {"row_block": 4, "parts": 2, "unroll": 4}
    if problem.operator == "fused_moe":
        values["gate_up"] = "fused"
    template.space(problem, target).check(values)
    check(template, problem, target, values, drawn)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_results_do_not_depend_on_the_schedule(format: str) -> None:
    """To the last bit: each sum is of the same products in the same order."""
    problem = FusedMoe(9, 3, 2, 640, 384, dtype="float32", format=format)
    inputs = operator("fused_moe").make_inputs(problem, np.random.default_rng(1))
    want = run(problem, inputs, row_block=2, groups=2)
    wide = Target.native().has("avx512f", "avx512bw", "avx512vl")
    for knobs in (
        {"row_block": 1, "order": "pair"},
        {"row_block": 3, "groups": 1, "unroll": 4, "prefetch": 0, "parts": 8},
        {"row_block": 4, "groups": 2 if wide else 1, "gate_up": "fused"},
        {"row_block": 2, "groups": 2, "columns": 256, "next_block": True},
        {"row_block": 3, "groups": 1, "columns": 256, "panel": 0, "gate_up": "fused"},
    ):
        np.testing.assert_array_equal(run(problem, inputs, **knobs), want)
    if Target.native().cores > 1:
        np.testing.assert_array_equal(run(problem, inputs, threads=2, parts=2), want)


def test_panels_are_of_slices() -> None:
    problem = FusedMoe(64, 4, 2, 1024, 512)
    template, target = first_template(problem)
    space = template.space(problem, target)
    with pytest.raises(ScheduleError, match="panels of several blocks are for slices"):
        space.check({**space.default(), "panel": 4})
    # Of rows of 512 columns and less there are no slices of 512.
    short = template.space(FusedMoe(64, 4, 2, 512, 512), target)
    assert [knob.values for knob in short.knobs if knob.name == "columns"] == [(0, 256)]


@pytest.mark.parametrize("expert", [0, 4])
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_all_tokens_to_one_expert(format: str, expert: int) -> None:
    """No tokens for the others, whose weights are NaN."""
    problem = FusedMoe(30, 5, 1, 40, 24, format=format)
    op = operator("fused_moe")
    inputs = op.make_inputs(problem, np.random.default_rng(2))
    inputs["topk_ids"][:] = expert
    for name in ("gate_up_proj", "down_proj"):
        poison_untouched(inputs[name], inputs["topk_ids"], format)
    got = run(problem, inputs)
    assert_matches(problem, {"out": got}, op.reference(problem, inputs))


def test_fused_equals_composed() -> None:
    """Two grouped products with the activation and the sum between and after them in numpy."""
    fused = FusedMoe(10, 4, 2, 48, 32, dtype="float32")
    inputs = operator("fused_moe").make_inputs(fused, np.random.default_rng(3))
    ids = inputs["topk_ids"]
    both = run(
        GroupedGemm(10, 4, 2, 64, 48, dtype="float32"),
        {"x": inputs["hidden_states"], "weights": inputs["gate_up_proj"], "topk_ids": ids},
    )
    gate, up = np.split(both.reshape(20, 64), 2, -1)
    h = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
    y = run(
        GroupedGemm(20, 4, 1, 48, 32, dtype="float32"),
        {"x": h, "weights": inputs["down_proj"], "topk_ids": ids.reshape(20, 1)},
    )
    composed = (y.reshape(10, 2, 48) * inputs["topk_weights"][..., None]).sum(1)
    np.testing.assert_allclose(run(fused, inputs), composed, rtol=1e-3, atol=2e-3)


@pytest.mark.isa("avx512_bf16", "avx512_vnni")
@pytest.mark.parametrize(
    ("format", "instruction"), [("bf16", "vdpbf16ps"), ("int8", "vpdpbusd"), ("int4", "vpdpbusd")]
)
def test_machine_code(format: str, instruction: str) -> None:
    """One instruction a product in the widest tile, and nothing on the stack in the loop."""
    import tvm

    problem = FusedMoe(24, 2, 2, 1024, 1024, format=format)
    template, target = first_template(problem)
    values = template.space(problem, target).restrict({"unroll": 1}).default()
    function = template.lower(problem, target, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(target.llvm()))
    text = str(module.inspect_source("asm"))
    blocks = re.split(r"\n(?=\.LBB)", text)
    loop = max(blocks, key=lambda block: block.count(instruction)).partition("\tjne")[0]
    nibbles = 2 if format == "int4" else 1
    assert loop.count(instruction) >= nibbles * int(values["groups"]) * int(values["row_block"])
    assert not re.search(r"vmov\w+\s+%zmm\d+, -?\d*\(%rsp\)", loop)


def test_counts_follow_the_routing() -> None:
    few, many = FusedMoe(1, 64, 8, 512, 256), FusedMoe(64, 64, 8, 512, 256)
    for problem in (few, many):
        for template in templates_for(problem, Target.native(1)):
            values = template.space(problem, Target.native(1)).default()
            counts = template.counts(problem, Target.native(1), values)
            share = operator("fused_moe").packed_share(problem)
            sizes = template.sizes(problem, Target.native(1), values)
            packed = share * (sizes["w1_bytes"] + sizes["w2_bytes"])
            assert packed <= counts.bytes["memory"] < 2 * packed
            assert counts.operations["dot"] > 0


@AVX512
def test_gate_beside_up_leaves_the_counts_of_down() -> None:
    """Half as many rows at once: gate and up are read twice as often, down is not."""
    problem, target = FusedMoe(64, 8, 2, 512, 256), Target.native(1)
    template = next(t for t in TEMPLATES if t.name == "fused_moe_avx512")
    values = {**template.space(problem, target).default(), "groups": 1, "row_block": 4}
    found = [template.counts(problem, target, {**values, "gate_up": g}) for g in GATE_UP]
    separate, fused = found
    assert separate.tiles["rows"] == 16
    # 16 rows are 4 blocks, or 8; the activations are read once for both halves.
    w1, w2 = 8 * 512 * 512 * 2, 8 * 512 * 256 * 2
    read_less = 128 * 512 * 2 * 512 // 16 // 2
    assert fused.bytes["l2"] - separate.bytes["l2"] == 4 * w1 - read_less
    broadcasts = 16 * w1 / 16, 16 * w2 / 16
    assert separate.bytes["l1"] == 4 * (w1 + w2) + sum(broadcasts)
    assert fused.bytes["l1"] == 8 * w1 + 4 * w2 + broadcasts[0] / 2 + broadcasts[1]
