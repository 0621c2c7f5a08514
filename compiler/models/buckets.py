"""Buckets of run-time sizes and their shares of the decoding steps, as people write them."""

from __future__ import annotations

from collections.abc import Mapping

from wattune.errors import ModelError


def normalised(buckets: Mapping[int, float], what: str = "token") -> dict[int, float]:
    """Check buckets and scale their weights to a sum of 1."""
    for count, weight in buckets.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ModelError(f"{what} bucket is {count!r}; allowed: an integer >= 1")
        if not 0 <= weight < float("inf"):
            raise ModelError(f"weight of {what} bucket {count} is {weight}; allowed: a number >= 0")
    total = sum(buckets.values())
    if total <= 0:
        raise ModelError(f"the weights of the {what} buckets sum to 0; allowed: a sum > 0")
    return {count: weight / total for count, weight in sorted(buckets.items())}


def parse_buckets(text: str, what: str = "token") -> dict[int, float]:
    """Read ``1:0.9,32:0.1``, or ``1,32``: then all weight is on the smallest bucket."""
    wrong = ModelError(f"{what} buckets {text!r}; allowed: buckets such as 1,32 or 1:0.9,32:0.1")
    buckets: dict[int, float] = {}
    parts = [part.partition(":") for part in text.split(",")]
    weighted = {bool(colon) for _, colon, _ in parts}
    if len(weighted) != 1:
        raise wrong
    try:
        for count, colon, weight in parts:
            if int(count) in buckets:
                raise wrong
            buckets[int(count)] = float(weight) if colon else 0.0
    except ValueError:
        raise wrong from None
    if weighted == {False}:
        buckets[min(buckets)] = 1.0
    return normalised(buckets, what)
