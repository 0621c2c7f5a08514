"""Budgets of what quantising costs: the quality benchmark on a small case."""

from __future__ import annotations

import pytest
from benchmarks.kv_quality import make, measure

HEADS, TOKENS = 4, 512

# Error of the keys, of the output relative to it, total variation: the expected figures of random
# data hold for any number of tokens; a tenth more for few heads.
BUDGETS = {
    ("random", "int8", "channel", 128): (0.0065, 0.01, 0.003),
    ("random", "int4", "channel", 128): (0.11, 0.16, 0.044),
    ("random", "int4", "channel", 32): (0.086, 0.125, 0.035),
    ("random", "int4", "token", 128): (0.11, 0.16, 0.044),
    ("random", "int2", "channel", 32): (0.43, 0.66, 0.17),
    ("outliers", "int4", "channel", 128): (0.056, 0.16, 0.046),
    ("outliers", "int4", "token", 128): (0.22, 0.50, 0.18),
    ("peaked", "int8", "channel", 128): (0.0065, 0.009, 0.004),
    ("peaked", "int4", "channel", 32): (0.086, 0.11, 0.04),
}


@pytest.mark.parametrize("scheme", BUDGETS, ids=lambda s: "-".join(map(str, s)))
def test_budgets_hold(scheme: tuple[str, str, str, int]) -> None:
    kind, format, key_groups, group_size = scheme
    found = measure(make(kind, HEADS, TOKENS), format, key_groups, group_size)
    got = [found[name] for name in ("key_error", "relative", "variation")]
    for value, budget in zip(got, BUDGETS[scheme], strict=True):
        assert value < budget
    # Far below would mean that nothing was quantised.
    assert got[0] > BUDGETS[scheme][0] / 2


def test_outlier_channels_need_params_per_channel() -> None:
    data = make("outliers", HEADS, TOKENS)
    channel, token = (
        measure(data, "int4", groups, 128)["key_error"] for groups in ("channel", "token")
    )
    assert 3 * channel < token


def test_more_bits_and_smaller_groups_are_better() -> None:
    data = make("random", HEADS, TOKENS)
    errors = [
        measure(data, format, "channel", group)["relative"]
        for format in ("int2", "int4", "int8")
        for group in (128, 32)
    ]
    assert errors == sorted(errors, reverse=True)
