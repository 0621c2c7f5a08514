"""The knobs of attention kernels on vector registers: values, defaults, constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattune.ops.attention import Attention
from wattune.schedules.cpu.attention.dot import WIDTH
from wattune.schedules.cpu.attention.plan import Fold
from wattune.schedules.space import Constraint, Knob, Value
from wattune.schedules.target import Target

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
COLUMNS = (2, 4, 8)
# Chunks for each thread: enough to even out ragged requests; lists are more uneven.
CHUNKS, LISTED_CHUNKS = 4, 8
# Blocks that are read side by side, from a first cache of so many bytes on.
STREAMS, LARGE_L1 = 4, 48 << 10
# Vector registers of a target without AVX-512.
FEW_REGISTERS = 16
# The most query rows of a key that memory keeps up with.
FEW_ROWS = 8
# Registers beside sums: a loaded vector in two parts, a query or weight.
SPARE = 3

# Tables of rows end with the next tile.
AHEAD = Constraint(
    "prefetch + wake must fit the block, and there is no wake without prefetch",
    lambda v: (
        int(v["prefetch"]) + int(v["wake"]) <= int(v["block"])
        and (bool(v["prefetch"]) or not v["wake"])
    ),
)


def lanes_of(problem: Attention, target: Target) -> int:
    """Return the lanes of a vector: what the target has, or what the narrowest row allows."""
    lanes = 16 if target.has("avx512f") else 8 if target.has("avx2", "fma") else 4
    while lanes > min(problem.head_dim, problem.value_dim):
        lanes //= 2
    return lanes


def registers_of(target: Target) -> int:
    """Return the vector registers of a target."""
    return 32 if target.has("avx512f") or target.arch != "x86_64" else 16


def arithmetic_of(problem: Attention, target: Target) -> tuple[str, ...]:
    """Return what products can be made of: fp32, or pairs of bfloat16."""
    wide = min(problem.head_dim, problem.value_dim) >= WIDTH
    pairs = problem.dtype == "bfloat16" and wide and target.has("avx512f", "avx512_bf16")
    return ("fma", "dot") if pairs else ("fma",)


def item_rows(problem: Attention) -> int:
    """Return the query rows that share a list of keys."""
    tokens = 1 if getattr(problem, "per_token", False) else problem.query_tokens
    return problem.group * tokens


def is_listed(problem: Attention) -> bool:
    """Say whether keys are named by lists."""
    return hasattr(problem, "max_blocks") or hasattr(problem, "max_tokens")


@dataclass(frozen=True)
class Reading:
    """How rows are read by default: what of `Plan` decides when memory is asked for what."""

    block: int
    stretch: int
    prefetch: int
    wake: int = 0
    level: int = 2
    streams: int = 1

    @classmethod
    def of(cls, problem: Any, target: Target) -> Reading:
        """Choose by measurements, those of `benchmarks/bandwidth.py` on Zen 3, 4 and 5.

        With a first cache of 48 KiB (Zen 5) rows are asked for into it, dense keys and values are
        read in turn, a page of each, and listed blocks side by side. With a smaller one (Zen 4)
        rows are asked for into the second cache, and pages of listed blocks are woken. Tables of
        listed keys cost more than those of dense ones: larger tiles. With 16 registers (Zen 3) a
        pass over values covers half a line of a row: passes of a few rows, asked for just ahead.
        """
        if target.has("avx2", "fma") and registers_of(target) == FEW_REGISTERS:
            return cls._few_registers(problem)
        large = "dot" in arithmetic_of(problem, target) and target.l1 >= LARGE_L1
        if hasattr(problem, "max_blocks"):
            if large:
                whole = 1 << (STREAMS * problem.block_size - 1).bit_length()
                block = min(512, max(128, whole))
                return cls(block, stretch=8, prefetch=32, level=1, streams=STREAMS)
            return cls(128, stretch=16, prefetch=32, wake=32)
        # Many query rows a key are bound by instructions: larger tiles.
        if large and problem.layout == "HND" and item_rows(problem) <= FEW_ROWS:
            return cls(16, stretch=128, prefetch=16, level=1)
        if is_listed(problem):
            return cls(128, stretch=16, prefetch=32)
        return cls(64, stretch=128, prefetch=64)

    @classmethod
    def _few_registers(cls, problem: Any) -> Reading:
        """Choose for AVX2 without AVX-512."""
        if hasattr(problem, "max_blocks"):
            return cls(128, stretch=16, prefetch=32, streams=2)
        return cls(128 if is_listed(problem) else 64, stretch=16, prefetch=16)


def knobs(problem: Attention, target: Target) -> tuple[Knob, ...]:
    """Return the knobs, in the words of `Plan`; ``stretch`` and ``prefetch`` count keys."""
    lanes, arithmetic = lanes_of(problem, target), arithmetic_of(problem, target)
    total = item_rows(problem)
    rows = tuple(r for r in ROWS if r <= min(total, lanes))
    most = max(r for r in rows if r <= (8 if registers_of(target) > 16 else 4))
    groups = -(-total // most)
    default_rows = min(r for r in rows if r * groups >= total)
    chunks = LISTED_CHUNKS if is_listed(problem) else CHUNKS
    blocks = hasattr(problem, "max_blocks")
    reading = Reading.of(problem, target)
    sums = 24 if registers_of(target) > 16 else 8
    splits = 1
    while target.threads > 1 and problem.kv_heads * splits < chunks * target.threads:
        splits *= 2
    counts = (1, 2, 4, 8, *(() if splits <= 8 else (splits,)))
    return (
        Knob("block", (16, 32, 64, 128, *((256, 512) if blocks else ())), reading.block),
        Knob("rows", rows, default_rows),
        Knob("unroll", (1, 2), 1),
        Knob("columns", COLUMNS, max(c for c in COLUMNS if c * default_rows <= sums or c == 2)),
        Knob("stretch", (8, 16, 128), reading.stretch),
        Knob("splits", counts, splits),
        Knob("split_tokens", (256, 1024), 256),
        Knob("prefetch", (0, 16, 32, 64), reading.prefetch),
        Knob("wake", (0, 16, 32, 64), reading.wake),
        Knob("level", (1, 2), reading.level),
        *((Knob("streams", (1, 2, 4), reading.streams),) if blocks else ()),
        Knob("scores", arithmetic, arithmetic[-1]),
        Knob("values", arithmetic, arithmetic[-1]),
    )


def constraints(problem: Attention, target: Target) -> tuple[Constraint, ...]:
    """Return the rules between knobs."""
    lanes, registers = lanes_of(problem, target), registers_of(target)

    def score_sums(values: Mapping[str, Value]) -> int:
        rows = int(values["rows"])
        return rows * Fold(rows, lanes).keys * int(values["unroll"])

    return (
        Constraint(
            f"rows * keys of a vector * unroll + {SPARE} must fit {registers} vector registers",
            lambda v: score_sums(v) + SPARE <= registers,
        ),
        Constraint(
            f"rows * columns + {SPARE} must fit {registers} vector registers",
            lambda v: int(v["rows"]) * int(v["columns"]) + SPARE <= registers,
        ),
        Constraint(
            "a step of unroll vectors of scores must fit the block",
            lambda v: Fold(int(v["rows"]), lanes).keys * int(v["unroll"]) <= int(v["block"]),
        ),
        Constraint(
            "prefetch must be none, or from a stretch to the block",
            lambda v: (
                not v["prefetch"]
                or min(int(v["stretch"]), int(v["block"])) <= int(v["prefetch"]) <= int(v["block"])
            ),
        ),
        AHEAD,
        Constraint(
            "a stretch below 128 keys must be smaller than the block",
            lambda v: int(v["stretch"]) == 128 or int(v["stretch"]) < int(v["block"]),
        ),
        Constraint(
            "dots of values pair the keys of a vector of scores: rows must be at most 8",
            lambda v: v["values"] != "dot" or int(v["rows"]) <= lanes // 2,
        ),
    )
