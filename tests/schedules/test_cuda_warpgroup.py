"""Attention by products of warpgroups: on the emulator against the references; its machine code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.emulator.cuda.driver import reversed_order
from tests.schedules.cuda import AMPERE, HOPPER, TINY, candidate_of, check_kernel
from tests.schedules.test_cuda_attention_code import source_of

from wattune.compiler.cuda import sass
from wattune.compiler.cuda.device_code import compile_image
from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, Problem, RectifyAttention
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

# MiMo-V2-Flash's global layers with 4 and 8 query tokens; lists that 8 tokens share.
PROBLEMS: tuple[Problem, ...] = (
    DecodeAttention(16, 32768, 64, 4, 192, value_dim=128, query_tokens=4),
    DecodeAttention(16, 32768, 64, 4, 192, value_dim=128, query_tokens=8),
    BlockSparseDecodeAttention(16, 32768, 64, 4, 128, max_blocks=52, query_tokens=8),
)
Case = tuple[tuple[int, int, int, int, int], dict[str, Any], dict[str, Any]]
# Two teams, one of two warpgroups; rows that none has; one and several slabs.
CASES: tuple[Case, ...] = (
    ((2, 150, 16, 1, 64), {"query_tokens": 4, "return_lse": True}, {}),
    (
        (2, 300, 16, 1, 192),
        {"value_dim": 128, "query_tokens": 4, "sinks": True, "return_lse": True},
        {"keys": 16, "stages": 2, "splits": 2},
    ),
    (
        (2, 200, 16, 1, 64),
        {"value_dim": 128, "query_tokens": 8, "dtype": "float16", "window": 100},
        {"stages": 3},
    ),
    ((2, 150, 26, 2, 64), {"query_tokens": 4, "page_size": 16, "layout": "NHD"}, {}),
)


def grouped(problem: Problem, target: Target = HOPPER) -> bool:
    values = default_candidate(problem, target).schedule.values
    return values["long_side"] == "warpgroup"


@pytest.mark.parametrize("case", CASES)
def test_dense(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fields, knobs = case
    problem = DecodeAttention(*sizes, **fields)
    assert grouped(problem)
    check_kernel(problem, monkeypatch, **knobs)
    with reversed_order():
        check_kernel(problem, monkeypatch, **knobs)


def test_a_persistent_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = DecodeAttention(3, 400, 16, 1, 64, query_tokens=5)
    check_kernel(problem, monkeypatch, TINY, persistent=True, splits=3, combine="last")


@pytest.mark.parametrize(
    "problem",
    [
        BlockSparseDecodeAttention(
            2, 300, 16, 1, 64, max_blocks=5, block_size=16, query_tokens=4, return_lse=True
        ),
        RectifyAttention(2, 100, 8, 2, 64, query_tokens=14),
    ],
    ids=str,
)
def test_others(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grouped(problem)
    check_kernel(problem, monkeypatch)


def test_where_there_are_none() -> None:
    """By default; with a row less than four warps need, other widths, on other GPUs."""
    full = DecodeAttention(2, 300, 7, 1, 64, query_tokens=7)
    assert grouped(full)
    assert not grouped(full, AMPERE) and not grouped(full, replace(HOPPER, arch="sm_90"))
    assert not grouped(DecodeAttention(2, 300, 12, 1, 64, query_tokens=4))
    assert not grouped(DecodeAttention(2, 300, 16, 1, 96, query_tokens=4))
    narrow = candidate_of(full, AMPERE, "", {})
    space = template_of(narrow).space(full, AMPERE)
    assert "warpgroup" not in next(k.values for k in space.knobs if k.name == "long_side")


@pytest.mark.nvcc
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_machine_code(problem: Problem) -> None:
    """No spills, no waits of the assembler's own, no products of single warps."""
    assert grouped(problem)
    source = source_of(problem, "sm_90a")
    # Swizzles are of addresses.
    assert "extern __shared__ __align__(1024)" in source
    image = compile_image(source, ["sm_90a"])
    used = image.usage["attend", "sm_90a"]
    assert used.stack == used.spill_stores == used.spill_loads == used.serialized == 0
    if sass.disassembler() is None:
        return
    counts = sass.opcodes(image.data)["attend"]
    found = sass.mix(counts)
    assert found["HGMMA"] > 0 and "HMMA" not in found
    assert found["LDGSTS.128"] == found["LDGSTS"] > 0
    # Descriptors are known to be uniform: they are not moved there for each product.
    assert counts["R2UR"] < found["HGMMA"]
