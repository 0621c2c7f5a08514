"""Machine code of the defaults of attention on GPUs; nothing is run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.schedules.cuda import candidate_of

from wattune.compiler.cuda import sass
from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.ops import Problem
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.merge_states import MergeStates
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

ARCHS = ("sm_80", "sm_89", "sm_90a")
# Layers of Qwen3-like models with SeerAttention's sizes, of Llama 3, of MiMo-V2-Flash.
PROBLEMS: tuple[Problem, ...] = (
    DecodeAttention(16, 32768, 32, 8, 128),
    DecodeAttention(16, 32768, 64, 4, 192, value_dim=128),
    DecodeAttention(16, 32768, 64, 4, 192, value_dim=128, query_tokens=4),
    DecodeAttention(16, 32768, 64, 8, 192, value_dim=128, window=128, sinks=True),
    BlockSparseDecodeAttention(16, 32768, 64, 8, 128, max_blocks=52, page_size=64),
    MergeStates(64, 2, 64, 128),
)
# 192 KiB elements a token: 2^31 of them are 10923 tokens.
HUGE = DecodeAttention(1, 1 << 20, 1024, 1024, 192, layout="NHD", page_size=16)


def source_of(problem: Problem, arch: str, **knobs: Value) -> str:
    prepare_tvm()
    target = Target.parse(f"cuda:{arch}")
    candidate = candidate_of(problem, target, "", knobs)
    template = template_of(candidate)
    program = template.lower(problem, target, candidate.schedule.values)
    return device_source(program, target).text


def cache_accesses(text: str) -> list[str]:
    """Return the lines of code that name a cache, but for parameters."""
    return [line for line in text.splitlines() if re.search(r"[kv]_cache_ptr\[", line)]


def test_rows_are_copied_16_bytes_at_a_time() -> None:
    lines = cache_accesses(source_of(PROBLEMS[0], "sm_80"))
    copy = "tvm_builtin_ptx_cp_async_cg_async_cg_shared_global_L2__128B_16("
    assert lines and all(line.lstrip().startswith(copy) for line in lines)


def test_bulk_copies_take_whole_rows() -> None:
    lines = cache_accesses(source_of(PROBLEMS[1], "sm_90a", copies="bulk"))
    assert lines and all("cp_async_bulk" in line for line in lines)
    assert all(f"(uint){2 * width}," in "\n".join(lines) for width in (192, 128))


@pytest.mark.parametrize("copies", ["async", "bulk"])
def test_rows_beyond_2_31_elements(copies: str) -> None:
    """An element's number is made of a row's, in 64 bits, by one multiplication."""
    text = source_of(HUGE, "sm_90a", copies=copies)
    lines = cache_accesses(text)
    assert lines
    for line in lines:
        number = line.split("cache_ptr[")[1]
        if bound := re.match(r"v_\d+", number):
            made = re.search(rf"int64_t {bound[0]} = .*", text)
            assert made, f"{bound[0]} is not 64 bits wide"
            number = made[0]
        assert "* (int64_t)192" in number


@pytest.mark.nvcc
@pytest.mark.parametrize(
    ("arch", "knobs"),
    [
        ("sm_80", {"long_side": "keys", "persistent": True, "combine": "last", "splits": 8}),
        ("sm_90a", {"polynomial": 2, "persistent": True}),
    ],
)
def test_other_schedules_do_not_spill(arch: str, knobs: dict[str, Value]) -> None:
    """Of a group of 16; by default its rows are in the long side."""
    image = compile_image(source_of(DecodeAttention(16, 32768, 64, 4, 128), arch, **knobs), [arch])
    assert image.usage["attend", arch].spill_loads == 0


@pytest.mark.nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_defaults_do_not_spill(problem: Problem, arch: str) -> None:
    """Nor have they a stack; where there is a disassembler, their copies are all wide."""
    image = compile_image(source_of(problem, arch), [arch])
    assert image.usage
    for usage in image.usage.values():
        assert usage.stack == usage.spill_stores == usage.spill_loads == 0
    if sass.disassembler() is None or isinstance(problem, MergeStates):
        return
    found: dict[str, Any] = sass.mix(sass.opcodes(image.data)["attend"])
    assert found["LDGSTS.128"] == found["LDGSTS"] > 0
    default = default_candidate(problem, Target.parse(f"cuda:{arch}")).schedule.values
    units = ("HGMMA", "HMMA") if default["long_side"] == "warpgroup" else ("HMMA", "HGMMA")
    assert found[units[0]] > 0 and units[1] not in found and found["LDSM"] > 0
    assert "LDL" not in found and "STL" not in found
