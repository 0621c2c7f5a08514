"""AVX2 products: what would saturate 16 bits if there were more in a sum, every number of rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.ops.expert_weights import GROUP_BYTES
from wattune.schedules.cpu.grouped_gemm import TEMPLATES
from wattune.schedules.target import Target
from wattune.schedules.template import Template

TARGET = Target.parse("cpu:avx2", 1)
pytestmark = pytest.mark.isa("avx2", "fma", "f16c")

# Experts 0 to 6 get so many rows: each size of tile alone, two tiles, and many.
ROWS = (0, 1, 2, 3, 4, 5, 9)
# The largest of products of one sign, and of both in turns.
EXTREMES = {
    "int8": (-128, 127),
    "int4": (15, 0),
}


def template_of(name: str) -> Template:
    return next(t for t in TEMPLATES if t.name == f"{name}_avx2")


def ids() -> Any:
    each = np.repeat(np.arange(len(ROWS)), ROWS)
    return np.random.default_rng(0).permutation(each).astype(np.int32)[:, None]


def extreme_inputs(problem: GroupedGemm, code: int, alternate: bool) -> dict[str, Any]:
    """Return weights of one code and activations that quantise to 127 or -127."""
    inputs = dict(operator("grouped_gemm").make_inputs(problem, np.random.default_rng(1)))
    weights, rows = np.array(inputs["weights"]), problem.in_features
    if problem.format == "int8":
        weights[..., :rows] = np.uint8(code & 255)
    else:
        groups = weights.reshape(*weights.shape[:-1], -1, GROUP_BYTES)
        groups[..., 4:] = code * 17
        weights = groups.reshape(weights.shape)
    x = np.ones((problem.tokens, rows), np.float32)
    if alternate:
        x[:, 1::2] = -1
    # Rows of either sign: the sums of one reach the lower end, those of the other the upper one.
    x[::2] *= -1
    return {**inputs, "weights": weights, "x": x, "topk_ids": ids()}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_extremes_do_not_saturate(format: str, groups: int) -> None:
    problem = GroupedGemm(sum(ROWS), len(ROWS), 1, 40, 384, dtype="float32", format=format)
    template, op = template_of("grouped_gemm"), operator("grouped_gemm")
    values = template.space(problem, TARGET).restrict({"groups": groups}).default()
    kernel = compile_function(template.lower(problem, TARGET, values), TARGET)
    for code in EXTREMES[format]:
        for alternate in (False, True):
            inputs = extreme_inputs(problem, code, alternate)
            got = run_kernel(problem, TARGET, template, values, inputs, compiled=kernel)
            want = op.reference(problem, inputs)
            assert_matches(problem, got, want)


@pytest.mark.parametrize("unroll", [1, 4])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_every_number_of_rows(format: str, unroll: int) -> None:
    """Tiles of 1, 2, 3, 4 and, in bfloat16, 6 rows; empty experts; odd sizes."""
    columns = 256 if format == "int4" else 77
    problem = GroupedGemm(sum(ROWS), len(ROWS), 1, 37, columns, dtype="float32", format=format)
    template, op = template_of("grouped_gemm"), operator("grouped_gemm")
    values = {**template.space(problem, TARGET).default(), "unroll": unroll}
    kernel = compile_function(template.lower(problem, TARGET, values), TARGET)
    inputs = {**op.make_inputs(problem, np.random.default_rng(2)), "topk_ids": ids()}
    got = run_kernel(problem, TARGET, template, values, inputs, compiled=kernel)
    assert_matches(problem, got, op.reference(problem, inputs))


@pytest.mark.parametrize(
    ("format", "once", "seldom"),
    [("bf16", "vfmadd231ps", ""), ("int8", "vpmaddubsw", ""), ("int4", "vpmaddubsw", "vpmaddwd")],
)
def test_machine_code(format: str, once: str, seldom: str) -> None:
    """A product is one instruction; sums of 16 bits are widened after eight of them."""
    import tvm

    problem = FusedMoe(64, 2, 2, 1024, 1024, format=format)
    template = template_of("fused_moe")
    values = {**template.space(problem, TARGET).default(), "unroll": 1}
    function = template.lower(problem, TARGET, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(TARGET.llvm()))
    blocks = re.split(r"\n(?=\.LBB)", str(module.inspect_source("asm")))
    loop = max(blocks, key=lambda block: block.count(once)).partition("\tjne")[0]
    # 16 rows of weights are two registers: of two columns, of four, or of eight in four steps.
    products = {"bf16": 2 * 2, "int8": 2, "int4": 2 * 2 * 4}[format] * int(values["row_block"])
    assert loop.count(once) == products
    if seldom:
        assert loop.count(seldom) * 8 == products
