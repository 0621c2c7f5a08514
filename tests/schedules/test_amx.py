"""AMX templates of ternary GEMM: on emulated tiles, in machine code, on real tiles."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.emulator.amx import Counters, TileFaultError, collect, emulate
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import TernaryGemm, operator
from wattune.schedules.cpu.ternary_gemm.amx import Amx, AmxI2, AmxT5
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Template, default_candidate, layout_of, templates_for

OPERATOR = operator("ternary_gemm")
NATIVE = Target.native(threads=1)
# This CPU with tiles: what the compiler emits besides them must run here.
TILED = dataclasses.replace(NATIVE, features=(*NATIVE.features, "amx_int8", "amx_tile"))
AMX = Target.parse("cpu:amx")

TEMPLATES = [
    pytest.param(AmxI2(), id="amx_i2", marks=pytest.mark.isa("avx512bw", "avx512vl")),
    pytest.param(AmxT5(), id="amx_t5", marks=pytest.mark.isa("avx512bw", "avx512vbmi")),
]
# Tails of rows, columns, tiles and blocks of columns; every dtype and scale.
PROBLEMS = [
    TernaryGemm(8, 37, 129, dtype="int8"),
    TernaryGemm(17, 33, 1340),
    TernaryGemm(33, 100, 700, dtype="bfloat16", scale="row"),
    TernaryGemm(32, 80, 640, dtype="int8", out_dtype="float32", scale="row"),
    TernaryGemm(11, 16, 1100, dtype="float16"),
]

Change = Callable[[str, list[Any]], list[Any] | None]


def run(
    problem: TernaryGemm,
    template: Template,
    values: Values,
    tokens: int | None = None,
    target: Target = TILED,
    change: Change | None = None,
) -> Counters:
    """Run on emulated tiles, compare with the reference, return what ran."""
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    got = run_kernel(
        problem, target, template, values, inputs, tokens, rewrite=lambda f: emulate(f, change)
    )
    counters = collect()
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))
    return counters


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("template", TEMPLATES)
def test_matches_reference(template: Amx, problem: TernaryGemm) -> None:
    space = template.space(problem, TILED)
    rng = np.random.default_rng(problem.in_features)
    run(problem, template, space.default(), tokens=problem.tokens * 2 // 3)
    for values in (space.default(), *(space.sample(rng) for _ in range(3))):
        assert values is not None
        ran = run(problem, template, values)
        # What features are made of is what happens; sums that wait for columns are loaded too.
        plan = template.plan(problem, TILED, values)
        waiting = (plan.k_blocks - 1) * plan.panels * plan.sum_tiles
        assert ran.dots == template.counts(problem, TILED, values).operations["tile"]
        assert ran.loads == plan.loads + waiting
        assert ran.configurations == ran.releases == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_thread_configures_its_tiles(template: Template) -> None:
    """Panels do not divide evenly among the threads; the last reaches beyond the weight."""
    target = dataclasses.replace(TILED, cores=4, threads=4)
    problem = TernaryGemm(20, 90, 1300, dtype="int8")
    for knobs in ({"panel_groups": 4, "k_block": 512}, {"panel_groups": 8, "ahead": 0}):
        values = template.space(problem, target).restrict({"groups": 1, **knobs}).default()
        ran = run(problem, template, values, target=target)
        assert ran.configurations == ran.releases == 4


def swap_tiles(name: str, operands: list[Any]) -> list[Any]:
    if name != "tdpbsud" or int(operands[0].value) != 0:
        return operands
    return [type(operands[0])("int8", 1), *operands[1:]]


def drop_zero(name: str, operands: list[Any]) -> list[Any] | None:
    return None if name == "tilezero" and int(operands[0].value) == 1 else operands


def shorten_stride(name: str, operands: list[Any]) -> list[Any]:
    if name != "tileloadd64" or int(operands[2].value) == 64:
        return operands
    return [*operands[:2], type(operands[2])("int64", int(operands[2].value) - 64)]


def other_tile(name: str, operands: list[Any]) -> list[Any]:
    if name != "tileloadd64":
        return operands
    return [type(operands[0])("int8", int(operands[0].value) + 2), *operands[1:]]


def swap_operands(name: str, operands: list[Any]) -> list[Any]:
    return [operands[0], operands[2], operands[1]] if name == "tdpbsud" else operands


def drop_configuration(name: str, operands: list[Any]) -> list[Any] | None:
    return None if name == "ldtilecfg" else operands


@pytest.mark.isa("avx512bw", "avx512vl")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_tiles, "Mismatched elements"),
        (drop_zero, "tile 1 is read before it is written"),
        (shorten_stride, "Mismatched elements"),
        (other_tile, "no tile 8"),
        (swap_operands, r"tdpbsud: 12 x 64 \+= 16 x 64 times 12 x 64"),
        (drop_configuration, "not configured"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_emulator_finds_mistakes(change: Change, message: str) -> None:
    problem = TernaryGemm(24, 64, 256, dtype="int8")
    values = AmxI2().space(problem, TILED).default()
    with pytest.raises((TileFaultError, AssertionError), match=message):
        run(problem, AmxI2(), values, change=change)


def assembly(template: Template, problem: TernaryGemm, **knobs: int) -> str:
    import tvm

    values = template.space(problem, AMX).restrict(knobs).default()
    function = template.lower(problem, AMX, values).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": function}), tvm.target.Target(AMX.llvm()))
    return str(module.inspect_source("asm"))


@pytest.mark.parametrize(
    ("token_tiles", "group_tiles", "loads"), [(2, 2, 4), (1, 4, 5), (4, 1, 5), (1, 2, 3)]
)
@pytest.mark.parametrize("template", [AmxI2(), AmxT5()], ids=lambda t: t.name)
def test_machine_code(template: Template, token_tiles: int, group_tiles: int, loads: int) -> None:
    """Every tile product is fed by the loads that the register block promises, none spilled."""
    text = assembly(
        template,
        TernaryGemm(128, 256, 4096, dtype="int8"),
        token_tiles=token_tiles,
        group_tiles=group_tiles,
        k_block=4096,
    )
    dots = text.count("tdpbsud")
    assert dots
    assert text.count("tileloadd") * token_tiles * group_tiles == dots * loads
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1
    addresses = re.findall(r"tile(?:loadd|stored)\s.*\((%\w+)", text)
    assert addresses
    assert "%rsp" not in addresses


def test_default_where_tiles_pay() -> None:
    one, many = TernaryGemm(1, 4096, 4096), TernaryGemm(128, 4096, 4096)
    assert templates_for(many, AMX)[0].name == "amx_i2"
    assert "amx" not in str(
        [t.name for t in templates_for(dataclasses.replace(many, tokens=7), AMX)]
    )
    assert "amx" not in str([t.name for t in templates_for(many, Target.parse("cpu:vnni"))])
    # One packed weight serves the smallest bucket and the tiles.
    first = default_candidate(one, AMX)
    assert first.schedule.template.startswith("vnni")
    assert default_candidate(many, AMX, layout_of(first)).schedule.template.startswith("amx")


@pytest.mark.isa("amx_int8", "amx_tile", "avx512vbmi")
@pytest.mark.parametrize("template", [AmxI2(), AmxT5()], ids=lambda t: t.name)
def test_matches_reference_on_tiles(template: Template) -> None:
    """Without the emulator; the process asks the kernel for the tiles' state first."""
    request_permission, tile_data = 0x1023, 18
    assert ctypes.CDLL(None).syscall(158, request_permission, tile_data) == 0
    for problem in PROBLEMS:
        inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
        values = template.space(problem, NATIVE).default()
        got = run_kernel(problem, NATIVE, template, values, inputs)
        assert_matches(problem, got, OPERATOR.reference(problem, inputs))
