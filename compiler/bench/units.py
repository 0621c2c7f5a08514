"""The unit of which a kernel's products are made, whose speed may bind it before memory does."""

from __future__ import annotations

from wattune.schedules.candidate import Candidate

# Units, by their field in `Limits`, and the name of a kernel's share of one.
SHARES = {"bf16_gflops": "of_dots", "fma_gflops": "of_fma", "words_gops": "of_words"}
# What the scores of 16-bit and fp32 caches are made of -> unit.
SCORES = {"dot": "bf16_gflops", "fma": "fma_gflops"}


def unit_of(candidate: Candidate) -> str:
    """Return the unit, if it is one of `SHARES`."""
    if unit := SCORES.get(str(candidate.schedule.values.get("scores"))):
        return unit
    wider = candidate.target.has("avx_vnni") or candidate.target.has("avx512f")
    words = candidate.schedule.template == "quantized_attention_avx2" and not wider
    return "words_gops" if words else ""
