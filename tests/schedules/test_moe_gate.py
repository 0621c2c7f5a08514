"""The gate on the CPU against its reference, and bit for bit whatever the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of, vectors
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import MoeGate, operator
from wattune.ops.operator import Array
from wattune.schedules.cpu.attention.knobs import registers_of
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

OPERATOR = operator("moe_gate")
# Rows where 32 registers hold their sums, or 16.
WIDE = registers_of(Target.native(1)) > 16
BF16: dict[str, Any] = {"weight_dtype": "bfloat16"}
PROBLEMS: tuple[tuple[MoeGate, dict[str, Any]], ...] = (
    (MoeGate(1, 256, 512), {}),
    (MoeGate(9, 37, 1100), {}),
    (
        MoeGate(9, 37, 1100, **BF16),
        {"depth": 16, "rows": 4 if WIDE else 2, "tokens": 6, "unroll": 4},
    ),
    (MoeGate(20, 10, 50, dtype="float32"), {"depth": 0, "rows": 8 if WIDE else 4, "tokens": 2}),
    (MoeGate(7, 3, 5, dtype="float32", **BF16), {"rows": 3, "prefetch": 0}),
    (MoeGate(70, 24, 260), {"groups": 4, "rows": 4 if WIDE else 3, "tokens": 4}),
    (MoeGate(5, 1, 1), {"lanes": 4}),
)


def bits(array: Array) -> list[int]:
    return array.ravel().view(np.uint32).tolist()


@pytest.mark.parametrize(("problem", "knobs"), PROBLEMS, ids=str)
def test_matches_the_reference(problem: MoeGate, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


@pytest.mark.isa("f16c")
def test_half_precision() -> None:
    check(MoeGate(5, 12, 90, dtype="float16", weight_dtype="float16"))


@pytest.mark.parametrize("target", [Target.parse("cpu:generic", 2), Target.parse("cpu:avx2")])
@pytest.mark.parametrize("problem", [PROBLEMS[1][0], PROBLEMS[2][0]], ids=str)
def test_other_targets(problem: MoeGate, target: Target) -> None:
    check(problem, target)


def test_fewer_tokens_than_the_bucket_and_none() -> None:
    problem, target = MoeGate(40, 30, 300), vectors(2)
    template, values = values_of(problem, target)
    for tokens in (1, 5, 33):
        fewer = dataclasses.replace(problem, tokens=tokens)
        inputs = OPERATOR.verification_inputs(fewer, np.random.default_rng(tokens))
        found = run_kernel(problem, target, template, values, inputs)
        assert_matches(fewer, found, OPERATOR.reference(fewer, inputs))
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    none = {**inputs, "hidden_states": inputs["hidden_states"][:0]}
    found = run_kernel(problem, target, template, values, none)
    assert found["router_logits"].shape == (0, 30)


def test_bits_do_not_depend_on_the_batch_or_the_threads() -> None:
    # Ties of the router would be broken otherwise for a token in a batch than alone.
    whole = MoeGate(21, 37, 1100)
    inputs = OPERATOR.make_inputs(whole, np.random.default_rng(4))
    expected = run(whole, inputs)["router_logits"]
    schedules: tuple[dict[str, Any], ...] = (
        {"tokens": 1, "rows": 8 if WIDE else 4, "depth": 0},
        {"tokens": 3, "rows": 2, "depth": 16, "unroll": 4},
        {"tokens": 4, "rows": 3, "groups": 4, "depth": 64},
    )
    for threads, knobs in zip((1, 2, 2), schedules, strict=True):
        found = run(whole, inputs, vectors(threads), **knobs)["router_logits"]
        assert bits(found) == bits(expected)
    for token in (0, 20):
        alone = dataclasses.replace(whole, tokens=1)
        row = {**inputs, "hidden_states": inputs["hidden_states"][token : token + 1]}
        assert bits(run(alone, row)["router_logits"]) == bits(expected[token])


def test_what_is_no_number_stays_where_it_is() -> None:
    problem = MoeGate(6, 10, 70)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(5))
    clean = run(problem, inputs)["router_logits"]
    inputs["hidden_states"][2, 69] = np.nan
    inputs["gate_weight"][9, 3] = np.nan
    found = run(problem, inputs)["router_logits"]
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 9]).all()
    others = [0, 1, 3, 4, 5]
    assert bits(found[others][:, :9]) == bits(clean[others][:, :9])


@pytest.mark.slow
@pytest.mark.parametrize("problem", [PROBLEMS[1][0], PROBLEMS[5][0]], ids=str)
def test_sampled_schedules(problem: MoeGate) -> None:
    space = templates_for(problem, vectors())[0].space(problem, vectors())
    rng = np.random.default_rng(0)
    for _ in range(4):
        knobs: dict[str, Any] = space.sample(rng) or {}
        check(problem, **knobs)
