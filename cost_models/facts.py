"""Facts of built GPU candidates as features: what the assembler and the machine code say.

They are known once a candidate is built, which takes no GPU: a search that builds more than it
measures can rank by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_SIZE = "sass.instructions"
# Features of a kernel's facts, and the facts that are added up for each.
_SUMS = {
    "registers": ("registers",),
    "shared": ("shared", "dynamic_shared"),
    "spills": ("spill_stores", "spill_loads"),
    "blocks_per_sm": ("blocks_per_sm",),
    "local_share": ("local_share",),
}


def fact_features(facts: Mapping[str, float]) -> dict[str, float]:
    """Return ``facts.*`` of the kernel with the most instructions; nothing of other builds."""
    kernel = largest_kernel(facts)
    if not kernel:
        return {}
    found = {
        f"facts.{name}": math.log2(1 + sum(facts.get(f"{kernel}.{part}", 0.0) for part in parts))
        for name, parts in _SUMS.items()
    }
    start = f"{kernel}.sass."
    mix = {name.removeprefix(start): n for name, n in facts.items() if name.startswith(start)}
    return found | {f"facts.sass.{name}": math.log2(1 + count) for name, count in mix.items()}


def largest_kernel(facts: Mapping[str, float]) -> str:
    """Name the kernel with the most instructions, the first with threads where none are counted."""
    kernels = [n.rpartition(".")[0] for n in facts if n.endswith(".threads")]
    return max(kernels, key=lambda kernel: facts.get(f"{kernel}.{_SIZE}", 0.0), default="")
