"""Look-up templates of ternary GEMM, each instruction on the least target that has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, pack_weights, run_kernel

from wattune.ops import TernaryGemm, operator
from wattune.ops.ternary_formats import FORMATS, LookupFormat
from wattune.schedules.cpu.ternary_gemm.lookup import Lookup, LookupElut, LookupTL1, LookupTL2
from wattune.schedules.cpu.ternary_gemm.lookup_layout import CHUNK, LookupLayout
from wattune.schedules.cpu.ternary_gemm.lookup_tables import DigitTables, largest_sum
from wattune.schedules.space import Space
from wattune.schedules.target import CPU_PROFILES, Target
from wattune.schedules.template import default_candidate, templates_for

OPERATOR = operator("ternary_gemm")
PROFILES = {"vpermb_512": "vnni", "vpshufb_512": "avx512", "vpshufb_256": "avx2"}
LOOKUPS = [
    pytest.param(name, marks=pytest.mark.isa(*CPU_PROFILES[profile]))
    for name, profile in PROFILES.items()
]
TEMPLATES = [LookupTL1(), LookupTL2(), LookupElut()]

# Tails of rows, columns, chunks of steps and token blocks; every dtype.
SHAPES: list[dict[str, Any]] = [
    {"tokens": 1, "out_features": 37, "in_features": 129, "dtype": "int8"},
    {"tokens": 3, "out_features": 64, "in_features": 320, "dtype": "float32", "scale": "row"},
    {"tokens": 5, "out_features": 100, "in_features": 63, "dtype": "bfloat16"},
    {"tokens": 2, "out_features": 1, "in_features": 1, "dtype": "int8", "out_dtype": "float32"},
]


def setting(template: Lookup, lookup: str, **fields: Any) -> tuple[TernaryGemm, Target, Space]:
    """Return a problem of the format's levels, the least target and its space."""
    coding = FORMATS[template.format]
    assert isinstance(coding, LookupFormat)
    problem = TernaryGemm(levels=coding.levels, **fields)
    target = Target.parse(f"cpu:{PROFILES[lookup]}")
    return problem, target, template.space(problem, target).restrict({"lookup": lookup})


# All shapes in the format with every feature, signs and odd groups; two in the others.
CASES = [(t, shape) for t in TEMPLATES for shape in (SHAPES if t.format == "tl2" else SHAPES[:2])]


def case_id(value: Any) -> str:
    """Name a template or a shape in a test's id."""
    return value.name if isinstance(value, Lookup) else "x".join(map(str, value.values()))


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("template, shape", CASES, ids=case_id)
def test_matches_reference(template: Lookup, lookup: str, shape: dict[str, Any]) -> None:
    problem, target, space = setting(template, lookup, **shape)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    expected = OPERATOR.reference(problem, inputs)
    sampled = space.sample(np.random.default_rng(problem.in_features))
    assert sampled is not None
    for values, tokens in ((space.default(), problem.tokens), (sampled, -(-problem.tokens // 2))):
        got = run_kernel(problem, target, template, values, inputs, tokens)
        assert_matches(problem, got, expected)


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_largest_sums_do_not_overflow(template: Lookup, lookup: str) -> None:
    """Every group at its extreme, over more columns than 8 or 16 bits of any stage can hold."""
    shape = {"tokens": 2, "out_features": 6, "in_features": 2500, "dtype": "int8"}
    problem, target, space = setting(template, lookup, **shape)
    high = problem.levels // 2
    weights = np.full((6, 2500), high, np.int8)
    weights[1] = -high
    weights[2, ::2] = -high
    weights[3, 1::3] = -high
    weights[4, 1250:] = -high
    weights[5] = 0
    x = np.full((2, 2500), -128, np.int8)
    x[1, 1::3] = 127
    inputs = {"weights": weights, "x": x}
    got = run_kernel(problem, target, template, space.default(), inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_digits_are_exact_and_fit_a_byte(template: Lookup) -> None:
    problem, _, space = setting(template, "vpshufb_256", tokens=1, out_features=8, in_features=8)
    layout = template.weight(problem, space.default())
    tables = DigitTables(layout, 1)
    total = np.arange(-largest_sum(layout), largest_sum(layout) + 1)
    high = (total * round(2**15 / tables.radix) + 2**14) >> 15
    low = total - high * tables.radix
    assert tables.safe_groups >= CHUNK
    assert tables.safe_groups * max(np.abs(low).max(), np.abs(high).max()) <= 127


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_pack_program_orders_what_the_format_codes(template: Lookup, lookup: str) -> None:
    """Undoing the layout in numpy gives planes that the format unpacks."""
    shape = {"tokens": 1, "out_features": 37, "in_features": 131, "dtype": "int8"}
    problem, target, space = setting(template, lookup, **shape)
    values = {**space.default(), "vectors": 2}
    layout = template.weight(problem, values)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(4))
    blob = pack_weights(problem, target, template, values, inputs)["weight"].numpy()
    planes, sums = planes_of(blob, layout)
    unpacked = layout.coding.unpack(planes, layout.padded_columns, problem.levels)
    np.testing.assert_array_equal(unpacked[:37, :131], inputs["weights"])
    assert not unpacked[37:].any()
    assert not unpacked[:, 131:].any()
    if layout.sign_sums:
        negative = np.unpackbits(planes["sign"], axis=1).sum(axis=1, dtype=np.int32)
        np.testing.assert_array_equal(sums, layout.groups - 2 * negative)


def planes_of(blob: Any, layout: LookupLayout) -> tuple[dict[str, Any], Any]:
    """Return the format's planes of all rows, padding included, and the stored sums of signs."""
    blocks = blob.reshape(layout.blocks, layout.block_bytes)
    codes = blocks[:, : layout.block_vectors * layout.width]
    shape = (layout.blocks, -1, layout.vectors, layout.rows, layout.lanes)
    slots = codes.reshape(shape).transpose(0, 2, 3, 1, 4)
    rows = slots.reshape(layout.blocks * layout.block_rows, -1, layout.lanes)
    sums = blocks[:, codes.shape[1] :].copy().view(np.int32).reshape(-1)
    if not layout.coding.mirror:
        return {"index": rows.reshape(len(rows), -1)}, sums
    is_sign = np.arange(rows.shape[1]) % (CHUNK + 1) == 0
    index = rows[:, ~is_sign]
    # [row, chunk, lane, bit] -> groups in order: step, lane, nibble.
    bits = np.unpackbits(rows[:, is_sign][..., None], axis=3, bitorder="little")
    bits = bits.reshape(len(rows), -1, layout.lanes, CHUNK, 2).transpose(0, 1, 3, 2, 4)
    bits = bits.reshape(len(rows), -1)
    assert not bits[:, layout.groups :].any()
    sign = np.packbits(bits[:, : layout.groups], axis=1, bitorder="little")
    return {"index": index.reshape(len(rows), -1), "sign": sign}, sums


@pytest.mark.isa("avx2")
def test_two_threads() -> None:
    problem, target, space = setting(
        LookupTL2(), "vpshufb_256", tokens=3, out_features=200, in_features=64
    )
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(2))
    parallel = Target.from_json({**target.to_json(), "cores": 2, "threads": 2})
    got = run_kernel(problem, parallel, LookupTL2(), space.default(), inputs)
    assert_matches(problem, got, OPERATOR.reference(problem, inputs))


def test_where_look_ups_apply() -> None:
    """They never are the default of three levels; of five they are the only fast template."""
    vnni = Target.parse("cpu:vnni")
    ternary, five = TernaryGemm(1, 64, 64), TernaryGemm(1, 64, 64, levels=5)
    assert "lookup" not in default_candidate(ternary, vnni).schedule.template
    assert default_candidate(five, vnni).schedule.template == "lookup_elut"
    fixed = TernaryGemm(1, 64, 64, format="tl2")
    assert [t.name for t in templates_for(fixed, vnni)] == ["lookup_tl2"]
    generic = templates_for(ternary, Target.parse("cpu:generic"))
    assert not [t.name for t in generic if t.name.startswith("lookup")]
