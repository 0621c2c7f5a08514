"""Kernels that write quantised caches, on an emulated GPU: bit for bit like the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import AMPERE, HOPPER, candidate_of, check_kernel, check_samples

from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.ops import KVCacheQuantize, QuantizedKVCacheAppend, operator
from wattune.schedules.template import template_of

Case = tuple[Any, dict[str, Any]]


def quantize(*sizes: Any, **fields: Any) -> KVCacheQuantize:
    return KVCacheQuantize(*sizes, **{"group_size": 32, "block_tokens": 64, **fields})


def append(*sizes: Any, **fields: Any) -> QuantizedKVCacheAppend:
    return QuantizedKVCacheAppend(*sizes, **{"group_size": 32, "block_tokens": 32, **fields})


# Every format, kind of groups and dtype; widths with rests of all kinds; pieces of a block.
CASES: tuple[Case, ...] = (
    (quantize(3, 150, 2, 128), {}),
    (quantize(2, 80, 1, 80, value_dim=32, format="int8", dtype="float16"), {"tokens": 64}),
    (quantize(2, 70, 1, 16, value_dim=64, format="int2", dtype="float32"), {"threads": 64}),
    (quantize(2, 140, 1, 192, 128, format="int8", key_groups="token", group_size=64), {}),
    (quantize(1, 33, 1, 160, 32, format="int2", key_groups="token", block_tokens=32), {}),
    (quantize(2, 390, 1, 64, 128, group_size=128, block_tokens=384), {}),
    (append(8, 100, 2, 64), {}),
    (append(4, 96, 2, 64, query_tokens=5, format="int2", dtype="float16", block_tokens=64), {}),
    (append(4, 97, 1, 64, query_tokens=32, format="int8", dtype="float32"), {"threads": 64}),
    (append(4, 200, 1, 64, query_tokens=70, key_groups="token", block_tokens=96), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), CASES, ids=str)
def test_matches_the_reference(
    problem: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(problem, monkeypatch, **knobs)


def test_an_older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernel(quantize(1, 70, 1, 32), monkeypatch, AMPERE)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hard_values(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinities, ranges that vanish in float16, subnormal scales, ties."""
    problem = quantize(1, 32, 1, 64, dtype=dtype, block_tokens=32, key_groups="token")
    kind = type(operator(problem.operator))
    original: Any = kind.make_inputs

    def hard(self: Any, problem: Any, rng: np.random.Generator) -> dict[str, Any]:
        inputs: dict[str, Any] = original(self, problem, rng)
        for name in ("k", "v"):
            rows = inputs[name][0, :, 0]
            rows[0] = np.inf
            rows[1, ::2] = -np.inf
            rows[2, :5] = [6e4, -6e4, 65504, -65504, np.inf]
            rows[3] = 1 + np.arange(64) * 2.0**-12
            rows[4] = np.arange(64) * 1e-7
            rows[5] = np.arange(64) * 2.0**-24
            rows[6] = -np.arange(64) * 1e-9
            rows[7] = (np.arange(64) % 31) / 2
            rows[8] = 0
            rows[9] = 1000.3
            rows[10] = 2.0**-14 * (1 - np.arange(64) * 2.0**-10)
        return inputs

    monkeypatch.setattr(kind, "make_inputs", hard)
    check_kernel(problem, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [CASES[0][0], CASES[-1][0]], ids=str)
def test_sampled_schedules(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(problem, monkeypatch)


@pytest.mark.nvcc
@pytest.mark.parametrize(
    "problem",
    [
        KVCacheQuantize(1, 32768, 8, 128),
        KVCacheQuantize(1, 32768, 8, 128, format="int2", key_groups="token"),
        QuantizedKVCacheAppend(16, 32768, 8, 128),
        QuantizedKVCacheAppend(16, 32768, 8, 128, format="int8", group_size=32),
    ],
    ids=str,
)
def test_defaults_do_not_spill(problem: Any) -> None:
    prepare_tvm()
    candidate = candidate_of(problem, HOPPER, "", {})
    program = template_of(candidate).lower(problem, HOPPER, candidate.schedule.values)
    image = compile_image(device_source(program, HOPPER).text, ("sm_80", "sm_89", "sm_90a"))
    assert len(image.usage) == 3
    for usage in image.usage.values():
        assert usage.stack == usage.spill_stores == usage.spill_loads == 0
