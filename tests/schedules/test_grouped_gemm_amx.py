"""AMX templates of grouped GEMM and fused experts on emulated tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.emulator.amx import collect, emulate
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.schedules.cpu.grouped_gemm import TEMPLATES
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, layout_of, templates_for

NATIVE = Target.native(threads=1)
# This CPU with tiles: what the compiler emits besides them must run here.
TILES = ("amx_bf16", "amx_int8", "amx_tile")
TILED = dataclasses.replace(NATIVE, features=(*NATIVE.features, *TILES))
AMX = Target.parse("cpu:amx")

# Rows beyond one tile and beyond two, rows of weights that do not fill a block.
PROBLEMS = [
    FusedMoe(21, 3, 2, 64, 96),
    FusedMoe(40, 2, 2, 128, 64, dtype="float32", format="int8"),
    FusedMoe(21, 3, 2, 256, 128, dtype="float32", format="int4"),
    GroupedGemm(18, 2, 1, 50, 128, format="int8"),
    GroupedGemm(35, 2, 1, 50, 384, format="int4"),
]
TEMPLATE = {t.operator: t for t in TEMPLATES if t.name.endswith("_amx")}


@pytest.mark.isa("avx512bw", "avx512vl")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_matches_reference(problem: Any) -> None:
    op, template = operator(problem.operator), TEMPLATE[problem.operator]
    assert templates_for(problem, TILED)[0] is template
    space = template.space(problem, TILED)
    rng = np.random.default_rng(problem.tokens)
    for groups, block in ((2, 32), (4, 16), (1, 16)):
        values = space.restrict({"groups": groups, "row_block": block}).default()
        for inputs in (op.make_inputs(problem, rng), op.verification_inputs(problem, rng)):
            got = run_kernel(problem, TILED, template, values, inputs, rewrite=emulate)
            ran = collect()
            assert ran.dots
            assert ran.configurations == ran.releases == len(template.names.weights)  # type: ignore[attr-defined]
            assert_matches(problem, got, op.reference(problem, inputs))


@pytest.mark.isa("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_matches_reference_on_tiles_of_this_machine(problem: Any, threads: int) -> None:
    op, template, target = operator(problem.operator), TEMPLATE[problem.operator], Target.native(1)
    target = dataclasses.replace(target, threads=threads)
    inputs = op.verification_inputs(problem, np.random.default_rng(problem.tokens))
    found: list[Any] = []
    changes: tuple[dict[str, Value], ...] = (
        {},
        {"prefetch": 4096, "groups": 1, "row_block": 16},
        {"groups": 4, "parts": 2},
    )
    for knobs in changes:
        values = template.space(problem, target).restrict(knobs).default()
        found.append(run_kernel(problem, target, template, values, inputs))
        assert_matches(problem, found[-1], op.reference(problem, inputs))
        np.testing.assert_equal(found[-1], found[0])


# The last slice of 256 columns is shorter; gate does not fill its last block.
SLICED = [
    FusedMoe(21, 2, 2, 320, 288),
    FusedMoe(21, 2, 2, 320, 576, dtype="float32", format="int8"),
    FusedMoe(21, 2, 2, 384, 640, dtype="float32", format="int4"),
]


@pytest.mark.isa("avx512bw", "avx512vl")
@pytest.mark.parametrize("problem", SLICED, ids=str)
def test_slices_and_gate_beside_up(problem: Any) -> None:
    """They match the reference, and give the same bits as whole columns, up after gate."""
    op, template = operator("fused_moe"), TEMPLATE["fused_moe"]
    space = template.space(problem, TILED)
    inputs = op.verification_inputs(problem, np.random.default_rng(problem.tokens))
    whole: dict[str, Value] = {"groups": 2, "row_block": 32, "columns": 0, "gate_up": "separate"}
    found = [
        run_kernel(problem, TILED, template, values, inputs, rewrite=emulate)
        for knobs in (whole, {**whole, "columns": 256, "panel": 4, "gate_up": "fused"})
        for values in (space.restrict(knobs).default(),)
    ]
    assert collect().dots
    assert_matches(problem, found[1], op.reference(problem, inputs))
    np.testing.assert_array_equal(found[0]["out"], found[1]["out"])


def test_default_where_experts_have_several_rows() -> None:
    few, many = FusedMoe(8, 32, 8, 4096, 2048), FusedMoe(128, 32, 8, 4096, 2048)
    assert templates_for(many, AMX)[0].name == "fused_moe_amx"
    assert templates_for(few, AMX)[0].name == "fused_moe_avx512"
    for format in ("int8", "int4"):
        other = dataclasses.replace(many, format=format)
        assert templates_for(other, AMX)[0].name == "fused_moe_amx"
    # One packed copy serves both.
    first = default_candidate(few, AMX)
    again = default_candidate(many, AMX, layout_of(first))
    assert again.schedule.template == "fused_moe_amx"
