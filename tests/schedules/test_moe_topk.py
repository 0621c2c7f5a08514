"""Routing on the CPU against its reference: ids exactly, whatever the logits are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of
from tests.schedules.hard_rows import hard_rows
from tests.schedules.kernels import assert_matches, run_kernel

from wattune.ops import MoeTopk, operator
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

OPERATOR = operator("moe_topk")
BIAS: dict[str, Any] = {"e_score_correction_bias": True}
GROUPS: dict[str, Any] = {"num_expert_group": 8, "topk_group": 4}
SOFTMAX: dict[str, Any] = {"scoring_func": "softmax"}
PROBLEMS: tuple[tuple[MoeTopk, dict[str, Any]], ...] = (
    (MoeTopk(40, 256, 8, **BIAS), {}),
    (MoeTopk(40, 256, 8, routed_scaling_factor=2.5, **BIAS, **GROUPS), {}),
    (MoeTopk(40, 128, 8, dtype="bfloat16", **SOFTMAX), {}),
    (MoeTopk(17, 128, 8, **SOFTMAX), {"groups": 0}),
    (MoeTopk(17, 250, 6, renormalize=False, dtype="bfloat16", **SOFTMAX, **BIAS), {}),
    (MoeTopk(17, 60, 4, num_expert_group=4, topk_group=2, **BIAS), {"lanes": 8}),
    (MoeTopk(17, 96, 4, num_expert_group=3, topk_group=2, renormalize=False, **SOFTMAX), {}),
    (MoeTopk(17, 128, 4, num_expert_group=2, topk_group=1, **BIAS), {"lanes": 4}),
    (MoeTopk(17, 64, 4, num_expert_group=16, topk_group=5, **BIAS), {"lanes": 4}),
    (MoeTopk(17, 8, 2, **SOFTMAX), {}),
    (MoeTopk(17, 5, 5), {}),
    (MoeTopk(17, 1, 1), {}),
    (MoeTopk(9, 320, 20, renormalize=False, **SOFTMAX), {}),
)


@pytest.mark.parametrize(("problem", "knobs"), PROBLEMS, ids=str)
def test_matches_the_reference(problem: MoeTopk, knobs: dict[str, Any]) -> None:
    check(problem, **knobs)


@pytest.mark.isa("avx512f", "avx512vl")
@pytest.mark.parametrize("compress", [False, True])
def test_both_ways_to_list(compress: bool) -> None:
    for problem in (PROBLEMS[0][0], MoeTopk(17, 250, 6), MoeTopk(17, 90, 20, **BIAS)):
        check(problem, compress=compress)


@pytest.mark.isa("f16c")
def test_half_precision() -> None:
    check(MoeTopk(9, 64, 4, dtype="float16"))


@pytest.mark.parametrize("fields", [{}, SOFTMAX, BIAS], ids=str)
def test_hard_rows(fields: dict[str, Any]) -> None:
    # All bits, neighbouring floats, equal scores: only comparisons of logits are exact there.
    logits = hard_rows()
    problem = MoeTopk(len(logits), logits.shape[1], 9, **fields)
    inputs = {"gating_output": logits}
    if problem.e_score_correction_bias:
        # So large that scores of float32 count nothing beside it.
        bias = np.arange(logits.shape[1], dtype=np.float32)[::-1] % 50 * np.float32(2**26)
        inputs["e_score_correction_bias"] = bias
    assert_matches(problem, run(problem, inputs), OPERATOR.reference(problem, inputs))


def test_a_bias_that_is_no_number() -> None:
    problem = MoeTopk(3, 40, 4, **BIAS)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    inputs["e_score_correction_bias"][:37:2] = np.nan
    inputs["e_score_correction_bias"][1] = -np.inf
    inputs["e_score_correction_bias"][3] = np.inf
    found = run(problem, inputs)
    assert (found["topk_ids"][:, 0] == 3).all()
    assert_matches(problem, found, OPERATOR.reference(problem, inputs))


@pytest.mark.parametrize("target", [Target.parse("cpu:generic", 2), Target.parse("cpu:avx2")])
@pytest.mark.parametrize("problem", [PROBLEMS[1][0], PROBLEMS[6][0]], ids=str)
def test_other_targets(problem: MoeTopk, target: Target) -> None:
    check(problem, target)


def test_threads_and_fewer_tokens_than_the_bucket() -> None:
    problem = MoeTopk(100, 64, 4)
    target = Target.native(2)
    template, values = values_of(problem, target, grain=4)
    for tokens in (1, 4, 5, 61):
        fewer = dataclasses.replace(problem, tokens=tokens)
        inputs = OPERATOR.verification_inputs(fewer, np.random.default_rng(tokens))
        found = run_kernel(problem, target, template, values, inputs)
        assert_matches(fewer, found, OPERATOR.reference(fewer, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("problem", [PROBLEMS[0][0], PROBLEMS[10][0]], ids=str)
def test_sampled_schedules(problem: MoeTopk) -> None:
    target = Target.native(1)
    space = templates_for(problem, target)[0].space(problem, target)
    rng = np.random.default_rng(0)
    for _ in range(4):
        knobs: dict[str, Any] = space.sample(rng) or {}
        check(problem, **knobs)
