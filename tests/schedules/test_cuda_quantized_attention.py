"""CUDA attention to quantised caches against the references, on the emulator.

Each kernel is checked twice by `check_kernel`: full requests, then ragged and empty ones with
poison in all params and residual rows that no query sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import (
    AMPERE,
    HOPPER,
    TINY,
    check_kernel,
    check_other_sizes,
    check_samples,
)

from wattune.ops import QuantizedDecodeAttention, operator
from wattune.schedules.cuda.quantized_attention import TEMPLATES
from wattune.schedules.target import Target

# (sizes: batch, context, query heads, KV heads, head_dim), other fields, knobs.
Case = tuple[tuple[int, int, int, int, int], dict[str, Any], dict[str, Any]]

LSE = {"return_lse": True}
FORMATS: tuple[Case, ...] = (
    ((3, 300, 8, 2, 64), {"format": "int8", **LSE}, {}),
    ((3, 300, 8, 2, 64), {"format": "int4", "dtype": "float16", **LSE}, {}),
    ((3, 300, 8, 2, 64), {"format": "int2", **LSE}, {}),
    ((3, 300, 4, 1, 64), {"format": "int8", "key_groups": "token", "group_size": 32}, {}),
    ((3, 300, 4, 1, 128), {"format": "int4", "key_groups": "token", **LSE}, {"splits": 2}),
    ((3, 300, 4, 1, 128), {"format": "int2", "key_groups": "token", "group_size": 32}, {}),
)
# Groups, blocks and widths that words, fields and products do not divide.
GEOMETRIES: tuple[Case, ...] = (
    ((2, 330, 16, 1, 64), {"group_size": 32, "block_tokens": 96, "query_tokens": 2, **LSE}, {}),
    ((2, 200, 7, 1, 192), {"value_dim": 128, "group_size": 128, "format": "int8"}, {}),
    (
        (2, 200, 4, 1, 80),
        {"value_dim": 96, "group_size": 32, "format": "int2", "block_tokens": 32},
        {},
    ),
    (
        (2, 200, 1, 1, 96),
        {"value_dim": 32, "group_size": 32, "format": "int2", "key_groups": "token", **LSE},
        {"tile": 64},
    ),
)
OTHERS: tuple[Case, ...] = (
    (
        (2, 300, 6, 1, 64),
        {"query_tokens": 3, "window": 100, "sinks": True, "soft_cap": 30.0, **LSE},
        {"rows": 16},
    ),
    # A window of residual rows alone, and one that begins in a packed block.
    ((2, 270, 2, 1, 64), {"window": 3, "format": "int8"}, {}),
    ((2, 300, 2, 1, 64), {"window": 128, "query_tokens": 8}, {"splits": 2}),
)
SCHEDULES: tuple[Case, ...] = (
    ((2, 600, 4, 1, 64), LSE, {"splits": 4, "combine": "last", "teams": 1}),
    ((2, 600, 16, 1, 64), LSE, {"tile": 128, "step": 64, "rows": 16, "stages": 3, "teams": 2}),
    (
        (2, 300, 16, 1, 64),
        {"format": "int8", "key_groups": "token", "query_tokens": 2},
        {"rows": 32, "stages": 4, "tile": 32, "teams": 8, "blocks": 1},
    ),
    ((2, 300, 8, 1, 64), {"format": "int2", "dtype": "float16", **LSE}, {"polynomial": 2}),
)
# On two SMs: blocks with several pieces; more requests than a warp has lanes; lists.
PERSISTENT: tuple[Case, ...] = (
    ((3, 900, 4, 2, 64), LSE, {"splits": 6, "combine": "last", "teams": 2}),
    ((40, 40, 1, 1, 64), {"format": "int8", "window": 30}, {"polynomial": 1}),
    (
        (3, 600, 8, 1, 64),
        {"block_size": 64, "max_blocks": 6, "query_tokens": 2, **LSE},
        {"splits": 3, "rows": 8},
    ),
)
SPARSE: tuple[Case, ...] = (
    ((3, 600, 8, 1, 64), {"block_size": 64, "max_blocks": 6, **LSE}, {"splits": 2}),
    (
        (3, 600, 8, 1, 64),
        {"block_size": 16, "max_blocks": 20, "format": "int2", "query_tokens": 2, **LSE},
        {},
    ),
    (
        (3, 600, 4, 1, 64),
        {"block_size": 48, "max_blocks": 9, "format": "int8", "window": 300},
        {"splits": 2, "combine": "last"},
    ),
    (
        (2, 450, 4, 1, 64),
        {"block_size": 256, "max_blocks": 2, "key_groups": "token", "query_tokens": 3, **LSE},
        {},
    ),
)


def problem_of(case: Case) -> QuantizedDecodeAttention:
    sizes, fields, _ = case
    return QuantizedDecodeAttention(*sizes, **fields)


def check(case: Case, monkeypatch: pytest.MonkeyPatch, target: Target = HOPPER) -> None:
    check_kernel(problem_of(case), monkeypatch, target, **case[2])


@pytest.mark.parametrize("case", FORMATS)
def test_formats(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", GEOMETRIES)
def test_geometries(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", OTHERS)
def test_windows_sinks_and_caps(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", PERSISTENT)
def test_persistent_grids(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fields, knobs = case
    check((sizes, fields, {"persistent": True, **knobs}), monkeypatch, TINY)


@pytest.mark.parametrize("case", SPARSE)
def test_listed_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


def test_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    check(((2, 200, 4, 1, 64), LSE, {"splits": 2}), monkeypatch, AMPERE)


@pytest.mark.parametrize("context", [1, 128, 130])
def test_lengths_around_a_block(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket's kernel at other lengths: residual alone, full, a block and none, one more."""
    problem = QuantizedDecodeAttention(3, 500, 4, 1, 64, query_tokens=2, return_lse=True)
    check_other_sizes(problem, monkeypatch, context=context, batch=3)


def test_a_token_that_outweighs_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 weights keep what 2^-18 of the greatest add up to: an attention sink.

    One key scores 12.5 above 2047 others that are alike, whose values are as large.
    """
    problem = QuantizedDecodeAttention(1, 2048, 1, 1, 64, format="int2", return_lse=True)
    kind = type(operator(problem.operator))
    original: Any = kind.make_inputs

    def sink(self: Any, problem: Any, rng: np.random.Generator) -> dict[str, Any]:
        inputs: dict[str, Any] = original(self, problem, rng)
        cache = problem.quantized
        keys = np.zeros((1, 1, 16, 128, 64), np.float32)
        keys[:, :, 0, 0, 0] = 12.5 + np.log(2)
        keys[..., 1] = 1e-3
        values = np.broadcast_to(np.float32(1.0), keys.shape).copy()
        values[..., ::2] = -1
        values[:, :, 0, 0] = rng.standard_normal(64)
        for name, rows in (("k", keys), ("v", values)):
            inputs[f"{name}_codes"], inputs[f"{name}_params"] = cache.quantize(name, rows)
        inputs["q"] = np.zeros_like(inputs["q"])
        inputs["q"][..., 0] = 1 / problem.scale
        return inputs

    monkeypatch.setattr(kind, "make_inputs", sink)
    check_kernel(problem, monkeypatch)


@pytest.mark.parametrize(
    ("problem", "applies"),
    [
        (QuantizedDecodeAttention(1, 64, 8, 2, 128), True),
        (QuantizedDecodeAttention(1, 64, 8, 2, 80, value_dim=64), True),
        (QuantizedDecodeAttention(1, 64, 8, 2, 128, dtype="float32"), False),
        (QuantizedDecodeAttention(1, 64, 8, 2, 64, value_dim=512), False),
    ],
    ids=str,
)
def test_what_applies(problem: QuantizedDecodeAttention, applies: bool) -> None:
    assert TEMPLATES[0].applies(problem, AMPERE) is applies


@pytest.mark.parametrize("heads", [(1, 1), (7, 1), (32, 8), (128, 8)])
@pytest.mark.parametrize("query_tokens", [1, 8])
def test_defaults_are_points_of_the_space(heads: tuple[int, int], query_tokens: int) -> None:
    others: tuple[dict[str, Any], ...] = (
        {},
        {"format": "int8", "group_size": 32, "block_tokens": 96},
        {"format": "int2", "block_size": 16, "max_blocks": 64, "key_groups": "token"},
    )
    for fields in others:
        problem = QuantizedDecodeAttention(
            1, 4096, *heads, 128, query_tokens=query_tokens, **fields
        )
        for target in (HOPPER, AMPERE):
            space = TEMPLATES[0].space(problem, target)
            values = space.default()
            assert values == {knob.name: knob.default for knob in space.knobs}
            found = TEMPLATES[0].counts(problem, target, values)
            assert min(found.operations.values()) > 0 and min(found.bytes.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [FORMATS[1], FORMATS[4], SPARSE[0]])
def test_sampled_schedules(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(problem_of(case), monkeypatch)
