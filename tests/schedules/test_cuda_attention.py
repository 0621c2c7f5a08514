"""CUDA attention against the references, on the emulator: dense, windowed, rectified.

Each kernel is checked twice by `check_kernel`: full requests, then ragged and empty ones with
poison in all rows that no query sees.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.emulator.cuda.driver import reversed_order
from tests.schedules.cuda import AMPERE, HOPPER, TINY, check_kernel

from wattune.ops import Problem
from wattune.ops.attention import Attention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.rectify_attention import RectifyAttention
from wattune.schedules.cuda.attention import TEMPLATES
from wattune.schedules.target import Target

# (sizes: batch, context, query heads, KV heads, head_dim), other fields, knobs.
Case = tuple[tuple[int, int, int, int, int], dict[str, Any], dict[str, Any]]

# 49 rows and more are a warpgroup's by default.
WARPS = {"long_side": "rows", "shape": "pad"}

GROUPS: tuple[Case, ...] = (
    ((3, 200, 2, 2, 64), {}, {}),
    ((3, 200, 4, 1, 128), {"return_lse": True}, {"splits": 2}),
    ((3, 130, 14, 2, 64), {"layout": "NHD", "return_lse": True}, {"splits": 1}),
    ((2, 520, 8, 1, 128), {"return_lse": True}, {"splits": 4, "combine": "last"}),
    ((2, 150, 16, 1, 192), {"value_dim": 128, "sinks": True, "return_lse": True}, {}),
)
DIMS: tuple[Case, ...] = (
    ((2, 100, 4, 2, 16), {"dtype": "float16"}, {"splits": 2}),
    ((2, 100, 4, 2, 96), {"value_dim": 48, "return_lse": True}, {}),
    ((1, 80, 4, 2, 256), {"return_lse": True}, {}),
    ((2, 150, 8, 1, 64), {"value_dim": 128, "dtype": "float16"}, {"shape": "xor"}),
)
TOKENS: tuple[Case, ...] = (
    ((3, 200, 8, 2, 64), {"query_tokens": 8, "window": 50, "sinks": True}, {}),
    ((2, 150, 16, 1, 64), {"query_tokens": 4, "return_lse": True}, {"splits": 2}),
    ((2, 150, 7, 1, 64), {"query_tokens": 3, "soft_cap": 5.0, "return_lse": True}, {}),
    ((2, 300, 8, 1, 64), {"query_tokens": 2, "window": 128, "return_lse": True}, {"splits": 2}),
)
PAGES: tuple[Case, ...] = (
    ((3, 200, 8, 2, 64), {"page_size": 16}, {"splits": 2}),
    ((3, 130, 8, 2, 64), {"page_size": 1, "layout": "NHD", "dtype": "float16"}, {}),
    ((3, 200, 8, 2, 64), {"page_size": 5, "window": 70, "return_lse": True}, {}),
    ((2, 200, 8, 2, 64), {"page_size": 64, "layout": "NHD"}, {"copies": "bulk", "splits": 2}),
)
SCHEDULES: tuple[Case, ...] = (
    ((2, 300, 4, 1, 64), {"return_lse": True}, {"copies": "bulk", "stages": 2, "teams": 2}),
    ((2, 300, 4, 1, 64), {}, {"keys": 32, "queries": "shared", "shape": "xor", "stages": 2}),
    (
        (2, 150, 16, 1, 64),
        {"query_tokens": 4, "return_lse": True},
        {
            **WARPS,
            "rows": 32,
            "row_warps": 2,
            "queries": "shared",
            "copies": "bulk",
        },
    ),
    ((2, 150, 16, 1, 64), {"query_tokens": 3}, {"rows": 16, "row_warps": 2, "teams": 1}),
    ((2, 150, 8, 1, 64), {"query_tokens": 2}, {"rows": 8, "long_side": "keys", "stages": 6}),
    ((2, 150, 16, 1, 64), {}, {"long_side": "keys", "polynomial": 2}),
    ((2, 150, 8, 1, 64), {"dtype": "float16", "return_lse": True}, {"polynomial": 1, "keys": 32}),
    (
        (2, 150, 10, 1, 64),
        {"value_dim": 128, "query_tokens": 3, "window": 100, "dtype": "float16"},
        {"rows": 32, "keys": 16, "row_warps": 1, "queries": "shared", "teams": 2},
    ),
)
# A warp of its own has the copy engine fill all rings; requests shorter than a ring, and none.
PRODUCER: tuple[Case, ...] = (
    ((3, 300, 4, 1, 64), {"return_lse": True}, {"splits": 2, "combine": "last"}),
    ((2, 200, 8, 2, 64), {"page_size": 16, "window": 150}, {"stages": 2, "teams": 2}),
    (
        (2, 150, 16, 1, 64),
        {"query_tokens": 4, "dtype": "float16"},
        {**WARPS, "rows": 16, "row_warps": 4, "teams": 2, "keys": 32, "stages": 3},
    ),
)
# On two SMs: blocks with several pieces; more requests than a warp has lanes.
PERSISTENT: tuple[Case, ...] = (
    ((3, 900, 8, 2, 64), {"return_lse": True}, {"splits": 4, "combine": "last"}),
    ((40, 40, 2, 1, 64), {}, {"splits": 1, "teams": 2}),
    (
        (2, 600, 24, 2, 64),
        {"window": 400},
        {"copies": "bulk", "splits": 2, "rows": 8, "long_side": "keys"},
    ),
    ((2, 600, 4, 1, 64), {}, {"copies": "bulk", "roles": "producer", "splits": 3}),
)


def check(case: Case, monkeypatch: pytest.MonkeyPatch, target: Target = HOPPER) -> None:
    sizes, fields, knobs = case
    problem = DecodeAttention(*sizes, **fields)
    check_kernel(problem, monkeypatch, target, **knobs)


@pytest.mark.parametrize("case", GROUPS)
def test_groups(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", DIMS)
def test_dims(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", TOKENS)
def test_query_tokens(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", PAGES)
def test_pages(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", PRODUCER)
def test_a_producer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fields, knobs = case
    knobs = {"copies": "bulk", "roles": "producer", **knobs}
    check((sizes, fields, knobs), monkeypatch)
    with reversed_order():
        check((sizes, fields, knobs), monkeypatch)


@pytest.mark.parametrize("case", PERSISTENT)
def test_persistent_grids(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fields, knobs = case
    check((sizes, fields, {"persistent": True, **knobs}), monkeypatch, TINY)


def test_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy engine and no dependent launches there."""
    check(((2, 300, 8, 2, 64), {"return_lse": True}, {"splits": 2}), monkeypatch, AMPERE)


@pytest.mark.parametrize(
    "knobs", [{}, {"splits": 2, "rows": 8, "row_warps": 2, "long_side": "keys"}]
)
def test_rectify(knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written before anything attends to them; the first request is shorter than them."""
    fields: dict[str, Any] = {
        "query_tokens": 33,
        "page_size": 16,
        "layout": "NHD",
        "return_lse": True,
    }
    check_kernel(RectifyAttention(2, 100, 8, 2, 64, **fields), monkeypatch, **knobs)


@pytest.mark.parametrize(
    ("problem", "applies"),
    [
        (DecodeAttention(1, 64, 8, 2, 128), True),
        (DecodeAttention(1, 64, 8, 2, 128, dtype="float32"), False),
        (DecodeAttention(1, 64, 8, 2, 72), False),
        (DecodeAttention(1, 64, 8, 2, 64, value_dim=512), False),
    ],
)
def test_what_applies(problem: Problem, applies: bool) -> None:
    template = next(t for t in TEMPLATES if t.operator == problem.operator)
    assert isinstance(problem, Attention)
    assert template.applies(problem, AMPERE) is applies
