"""Machine code of the defaults of selection and of appending to caches; nothing is run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.schedules.cuda import HOPPER, candidate_of

from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.ops import (
    AttnGate,
    AttnGateCompress,
    BlockMinmax,
    BlockScore,
    KVCacheAppend,
    SelectBlocks,
    SelectUnion,
)
from wattune.schedules.space import Value
from wattune.schedules.template import template_of

ARCHS = ("sm_80", "sm_89", "sm_90a")
# Problems of real models, and what of them is read or written 16 bytes at a time.
PROBLEMS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (KVCacheAppend(16, 32768, 8, 128, page_size=64), ("k_ptr", "k_cache_ptr", "v_cache_ptr")),
    (BlockMinmax(16, 32768, 8, 128), ("k_cache_ptr", "k_min_ptr", "k_max_ptr")),
    (BlockMinmax(1, 131072, 8, 128, 64, 0, layout="NHD", page_size=64), ("k_cache_ptr",)),
    (BlockScore(16, 32768, 64, 8, 128), ("k_min_ptr", "k_max_ptr")),
    (AttnGate(16, 32768, 64, 8, 128), ("wq_ptr", "k_compressed_ptr")),
    (AttnGateCompress(16, 32768, 8, 128), ("wk_ptr", "k_remainder_ptr")),
    (SelectBlocks(16, 32768, 8), ()),
    (SelectBlocks(16, 131072, 8, block_size=16, method="fraction"), ()),
    (SelectBlocks(16, 131072, 8, method="threshold"), ()),
    (SelectUnion(16, 32768, 32), ()),
)


def source_of(problem: Any, **knobs: Value) -> str:
    prepare_tvm()
    candidate = candidate_of(problem, HOPPER, "", knobs)
    program = template_of(candidate).lower(problem, HOPPER, candidate.schedule.values)
    return device_source(program, HOPPER).text


@pytest.mark.parametrize(("problem", "wide"), PROBLEMS, ids=str)
def test_rows_are_read_16_bytes_at_a_time(problem: Any, wide: tuple[str, ...]) -> None:
    text = source_of(problem)
    for name in wide:
        places = re.findall(rf"^.*\(\w+\*\){name}\)\[.*$", text, re.MULTILINE)
        assert places
        # Caches may have more than 2^31 elements; weights have a known size.
        assert name == "wk_ptr" or all("int64_t" in line for line in places)
        assert all(re.match(r"\s*tvm_builtin_ptx_(ld|st)_\w*v4_u32\(", line) for line in places)


@pytest.mark.nvcc
@pytest.mark.parametrize("problem", [problem for problem, _ in PROBLEMS], ids=str)
def test_defaults_do_not_spill(problem: Any) -> None:
    image = compile_image(source_of(problem), ARCHS)
    assert {arch for _, arch in image.usage} == set(ARCHS)
    for usage in image.usage.values():
        assert usage.stack == usage.spill_stores == usage.spill_loads == 0


@pytest.mark.nvcc
@pytest.mark.parametrize(
    "problem", [AttnGate(16, 32768, 64, 8, 128), SelectUnion(1, 32768, 32)], ids=str
)
def test_kernels_that_overlap_assemble(problem: Any) -> None:
    text = source_of(problem, overlap=True)
    assert text.count("griddepcontrol.launch_dependents") == 1
    assert text.count("griddepcontrol.wait") == 1
    assert {arch for _, arch in compile_image(text, ARCHS).usage} == set(ARCHS)
