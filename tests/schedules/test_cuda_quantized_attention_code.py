"""Machine code of the defaults of attention to quantised caches; nothing is run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.schedules.cuda import candidate_of

from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.ops import QuantizedDecodeAttention
from wattune.schedules.target import Target
from wattune.schedules.template import template_of

# Sizes: batch, context, query heads, KV heads, head_dim; other fields.
Case = tuple[tuple[int, int, int, int, int], dict[str, Any]]

# One of each format and kind of groups, wide GQA, uneven widths, lists.
PROBLEMS: tuple[Case, ...] = (
    ((8, 32768, 32, 8, 128), {}),
    ((8, 32768, 32, 8, 128), {"format": "int8", "key_groups": "token"}),
    ((1, 131072, 64, 4, 128), {"format": "int2", "group_size": 32}),
    (
        (1, 32768, 32, 8, 192),
        {"value_dim": 128, "key_groups": "token", "group_size": 32, "dtype": "float16"},
    ),
    ((16, 32768, 64, 8, 128), {"block_size": 64, "max_blocks": 52, "group_size": 128}),
)
# The most rows for a warp: queries of a few tokens, as where drafts are verified.
VERIFYING: Case = (
    (1, 131072, 64, 4, 128),
    {"format": "int2", "group_size": 32, "query_tokens": 4},
)


def source_of(case: Case, arch: str) -> str:
    prepare_tvm()
    sizes, fields = case
    target = Target.parse(f"cuda:{arch}")
    candidate = candidate_of(QuantizedDecodeAttention(*sizes, **fields), target, "", {})
    program = template_of(candidate).lower(candidate.problem, target, candidate.schedule.values)
    return device_source(program, target).text


@pytest.mark.parametrize("case", PROBLEMS)
def test_the_cache_is_read_16_bytes_at_a_time(case: Case) -> None:
    """Codes, params and residual rows all go to shared memory in wide copies, by 64-bit indices."""
    text = source_of(case, "sm_90a")
    for name in (f"{which}_{part}" for which in "kv" for part in ("codes", "params", "residual")):
        places = re.findall(rf"^.*{name}_ptr\)?\[.*$", text, re.MULTILINE)
        places += re.findall(rf"^.*\*\){name}_ptr\b.*$", text, re.MULTILINE)
        assert places
        copies = re.compile(r"\s*tvm_builtin_ptx_cp_async_cg_\w*shared_global_L2__128B_16\w*\(")
        assert all(copies.match(line) and "int64_t" in line for line in places)


@pytest.mark.nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("case", [*PROBLEMS, VERIFYING])
def test_the_default_does_not_spill(case: Case, arch: str) -> None:
    image = compile_image(source_of(case, arch), [arch])
    assert ("attend", arch) in image.usage
    for usage in image.usage.values():
        assert usage.stack == usage.spill_stores == usage.spill_loads == 0
