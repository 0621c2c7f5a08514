"""Why no variant serves a call: the reasons of the variants that came closest, as one sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mismatch:
    """What does not fit a variant. ``rank`` counts what fits; ``expected`` may be empty."""

    rank: int
    found: str
    expected: str = ""


def closest(mismatches: list[Mismatch]) -> str:
    """Return the reasons of highest rank: ``x is float64; expected float32 or bfloat16``."""
    rank = max(m.rank for m in mismatches)
    expected: dict[str, dict[str, None]] = {}
    for m in mismatches:
        if m.rank == rank:
            expected.setdefault(m.found, {})[m.expected] = None
    return " or ".join(
        f"{found}; expected {' or '.join(allowed)}" if any(allowed) else found
        for found, allowed in expected.items()
    )
