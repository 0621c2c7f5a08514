"""Which built candidates are not measured: their machine code says enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Facts = Mapping[str, float]

# The share of executed instructions that may access spilled registers: less is within the spread of
# measurements, so measuring decides.
MOST_LOCAL = 0.02
# Where nobody read the machine code: bytes that a thread spills, two registers stored and loaded.
MOST_SPILLED = 16

_FACTS = ("threads", "registers", "shared", "dynamic_shared", "spill_stores", "spill_loads")


def kernels_of(facts: Facts) -> Iterator[str]:
    """Yield the kernels that facts of a build are about."""
    for name in facts:
        kernel, _, fact = name.rpartition(".")
        if fact == "threads":
            yield kernel


def refusal(facts: Facts) -> str:
    """Say why a candidate is a failure without being run; empty where it is none.

    Spills: what a thread keeps in memory moves through the caches at every use, and the same
    schedule with smaller tiles or a higher cap is in the space. They count by where they are: in
    a loop, or once at a kernel's ends. Products of warpgroups that the assembler does not let
    overlap with anything: as for spills, others are in the space. No room: the launch would fail.
    """
    for kernel in kernels_of(facts):
        found = {fact: int(facts.get(f"{kernel}.{fact}", 0)) for fact in _FACTS}
        spilled = found["spill_stores"] + found["spill_loads"]
        if spilled and (where := _matters(facts, kernel, spilled)):
            return f"kernel {kernel} spills: {spilled} bytes of loads and stores a thread{where}"
        if times := int(facts.get(f"{kernel}.serialized", 0)):
            return f"kernel {kernel} waits between products of warpgroups, in {times} places"
        if facts.get(f"{kernel}.blocks_per_sm") == 0:
            shared = found["shared"] + found["dynamic_shared"]
            return (
                f"kernel {kernel} fits on no SM: blocks of {found['threads']} threads with "
                f"{found['registers']} registers each and {shared} bytes of shared memory"
            )
    return ""


def _matters(facts: Facts, kernel: str, spilled: int) -> str:
    """Say how much spills weigh; empty where it is little."""
    if f"{kernel}.sass.instructions" not in facts:
        return ", nobody knows where" if spilled > MOST_SPILLED else ""
    share = facts.get(f"{kernel}.local_share", 0.0)
    return f", {share:.1%} of what it executes" if share > MOST_LOCAL else ""
