"""Milliseconds per token of models whose layers are bucketed by different sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wattune.compiler.models.step import tokens_of
from wattune.compiler.step_time import Calls, ms_per_token
from wattune.ops import DecodeAttention, KVCacheAppend, Problem, TernaryGemm


def calls(problem: Problem, seconds: float | None, layers: int = 1, weight: float = 1.0) -> Calls:
    return Calls(problem, layers, weight, tokens_of(problem), seconds)


ATTEND = DecodeAttention(2, 512, 8, 8, 64, query_tokens=4)


def test_layers_of_one_step_add_up() -> None:
    step = [
        calls(TernaryGemm(8, 64, 64), 1e-3, layers=3),
        calls(ATTEND, 4e-3, layers=2),
        calls(KVCacheAppend(2, 512, 8, 64, query_tokens=4), 1e-3, layers=2),
    ]
    # 13 ms for two requests of four tokens.
    assert ms_per_token(step) == pytest.approx(13 / 8)


def test_buckets_are_shares_of_the_steps() -> None:
    buckets = [
        calls(ATTEND, 4e-3, 2, 0.9),
        calls(replace(ATTEND, batch=16), 16e-3, 2, 0.1),
        calls(TernaryGemm(8, 64, 64), 1e-3, 3, 0.9),
        calls(TernaryGemm(64, 64, 64), 2e-3, 3, 0.1),
    ]
    steps = 0.9 * (8 + 3) + 0.1 * (32 + 6)
    assert ms_per_token(buckets) == pytest.approx(steps / (0.9 * 8 + 0.1 * 64))


def test_buckets_of_contexts_are_no_more_tokens() -> None:
    buckets = [
        calls(ATTEND, 4e-3, weight=0.5),
        calls(replace(ATTEND, context=4096), 8e-3, weight=0.5),
        calls(TernaryGemm(8, 64, 64), 1e-3),
    ]
    assert ms_per_token(buckets) == pytest.approx((6 + 1) / 8)


def test_kinds_of_layers_may_see_different_steps() -> None:
    # Linear layers with prompts among the steps, attention without.
    mixed = [
        calls(TernaryGemm(1, 64, 64), 1e-3, weight=0.9),
        calls(TernaryGemm(32, 64, 64), 2e-3, weight=0.1),
        calls(replace(ATTEND, batch=1, query_tokens=1), 5e-3),
    ]
    assert ms_per_token(mixed) == pytest.approx(1.1 / 4.1 + 5)


def test_what_is_not_known() -> None:
    assert ms_per_token([calls(ATTEND, None), calls(TernaryGemm(1, 8, 8), 1.0)]) is None
    assert ms_per_token([calls(ATTEND, None, weight=0.0), calls(ATTEND, 1.0)]) == 125
    assert ms_per_token([]) is None
