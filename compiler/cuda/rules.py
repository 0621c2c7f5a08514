"""Which built candidates are not measured: their machine code says enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Facts = Mapping[str, float]

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
    schedule with smaller tiles or a higher cap is in the space. No room: the launch would fail.
    """
    for kernel in kernels_of(facts):
        found = {fact: int(facts.get(f"{kernel}.{fact}", 0)) for fact in _FACTS}
        if spilled := found["spill_stores"] + found["spill_loads"]:
            return f"kernel {kernel} spills: {spilled} bytes of loads and stores a thread"
        if facts.get(f"{kernel}.blocks_per_sm") == 0:
            shared = found["shared"] + found["dynamic_shared"]
            return (
                f"kernel {kernel} fits on no SM: blocks of {found['threads']} threads with "
                f"{found['registers']} registers each and {shared} bytes of shared memory"
            )
    return ""
