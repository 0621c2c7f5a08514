"""The knobs of quantised attention on GPUs: values, defaults, constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.attention import Items
from wattune.schedules.cuda.attention.knobs import (
    LEAST_SPLIT,
    MOST_REGISTERS,
    REGISTERS,
    RESERVED,
    SPLITS,
    hopper,
    room_of,
    splits_for,
)
from wattune.schedules.cuda.quantized_attention.plan import COLUMNS, PART, QuantizedPlan
from wattune.schedules.space import Constraint, Knob, Value
from wattune.schedules.target import Target

# Registers of a thread beside sums, queries, scores and weights, at the most.
_SPARE = 88
_WARPS = 16
# Bytes under way to an SM that hide the way from memory: an H200's 4.8 TB/s for about 0.8 us, by
# public figures, are 29 KB for each of its 132 SMs; twice that, since warps do not load evenly.
_UNDER_WAY = 64 << 10


def plan_of(
    problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
) -> QuantizedPlan:
    """Return the schedule."""
    plan = QuantizedPlan(
        problem=problem,
        teams=int(values["teams"]),
        row_warps=1,
        rows=int(values["rows"]),
        splits=int(values["splits"]),
        split_keys=int(values["split_keys"]),
        combine=str(values["combine"]),
        blocks=int(values["blocks"]),
        dependent=hopper(target),
        polynomial=int(values["polynomial"]),
        grid=0,
        stages=int(values["stages"]),
        tile=int(values["tile"]),
        step=int(values["step"]),
    )
    return replace(plan, grid=target.cores * room(plan, target)) if values["persistent"] else plan


def registers_of(plan: QuantizedPlan) -> int:
    """Estimate the registers of a thread: sums, queries, scores, weights, the rest."""
    sums = plan.problem.value_dim // 4
    queries = 2 * len(plan.steps) * (2 if plan.cache.per_channel("k") else 1)
    scores = 8 * plan.step // PART * max(1, plan.cache.groups("k"))
    weights = 4 * plan.cache.groups("v")
    return plan.panels * (sums + queries + scores + weights) + _SPARE


def room(plan: QuantizedPlan, target: Target) -> int:
    """Return how many blocks fit an SM at once, by shared memory and registers."""
    return room_of(plan, registers_of(plan), target)


def under_way(plan: QuantizedPlan, target: Target) -> int:
    """Return the bytes on their way to an SM while its warps are at work."""
    return room(plan, target) * (plan.stages - 1) * plan.teams * plan.slot_bytes


def knobs(problem: QuantizedDecodeAttention, target: Target) -> tuple[Knob, ...]:
    """Return the knobs, in the words of `QuantizedPlan`.

    Of dense attention's there are not: bulk copies, since lanes copy codes in the order in which
    they read them; queries in shared memory, since they are operands of every step; several warps
    to a team, since codes that become operands once serve up to 32 rows.
    """
    found = _defaults(problem, target)
    values: dict[str, tuple[Value, ...]] = {
        "teams": (1, 2, 4, 8),
        "rows": (8, 16, 32),
        "tile": tuple(t for t in (32, 64, 128) if problem.block_tokens % t == 0),
        "step": (32, 64),
        "stages": (2, 3, 4, 6),
        "polynomial": (0, 1, 2),
        "persistent": (False, True),
        "splits": SPLITS,
        "split_keys": (LEAST_SPLIT,) if problem.block_size else (LEAST_SPLIT, 512, 1024, 2048),
        "combine": ("kernel", "last"),
        "blocks": (0, 1, 2, 3, 4),
    }
    return tuple(Knob(name, options, found[name]) for name, options in values.items())


def _defaults(problem: QuantizedDecodeAttention, target: Target) -> dict[str, Value]:
    """Choose a schedule: codes become operands once for up to 16 rows, enough bytes under way.

    Tiles have about 8 KB of codes, since each has params and a turn of the loop to pay for, but
    are no longer than listed blocks.
    """
    most = 32 if problem.format == "int8" else 64
    most = max(PART, min(most, problem.block_size or most))
    found: dict[str, Value] = {
        "teams": 4,
        "rows": COLUMNS,
        "tile": max(t for t in (32, 64) if t <= most and problem.block_tokens % t == 0),
        "step": 32,
        "stages": 2,
        "polynomial": 0,
        "persistent": False,
        "splits": 1,
        "split_keys": LEAST_SPLIT,
        "combine": "kernel",
        "blocks": 0,
    }
    wide = {**found, "rows": 2 * COLUMNS}
    if Items(problem).item_rows > COLUMNS and _registers(plan_of(problem, target, wide)):
        found = wide
    for stages in (2, 3, 4):
        found["stages"] = stages
        if under_way(plan_of(problem, target, found), target) >= _UNDER_WAY:
            break
    plan = plan_of(problem, target, found)
    found["splits"] = splits_for(plan, target, room(plan, target))
    return found


def _registers(plan: QuantizedPlan) -> bool:
    """Say whether the registers of more rows than the least hold what they must."""
    most = REGISTERS // (plan.threads * max(1, plan.blocks))
    return plan.panels == 1 or registers_of(plan) <= min(MOST_REGISTERS, most)


def constraints(problem: QuantizedDecodeAttention, target: Target) -> tuple[Constraint, ...]:
    """Return the rules between knobs."""

    def plan(values: Mapping[str, Value]) -> QuantizedPlan:
        return plan_of(problem, target, values)

    least = registers_of(plan({**_defaults(problem, target), "rows": COLUMNS}))
    return (
        Constraint(
            "rows are at most twice those there are, or 8",
            lambda v: int(v["rows"]) <= max(COLUMNS, 2 * plan(v).item_rows - 1),
        ),
        Constraint(
            "a step lies in a tile, and in a group of tokens",
            lambda v: (
                int(v["step"]) <= int(v["tile"])
                and (not plan(v).cache.per_channel("k") or int(v["step"]) <= problem.group_size)
            ),
        ),
        Constraint(
            f"blocks must fit {target.l1} bytes of shared memory",
            lambda v: (
                max(1, int(v["blocks"])) * (plan(v).shared.bytes + RESERVED) <= target.l1 + RESERVED
            ),
        ),
        Constraint("registers must hold sums, queries and scores", lambda v: _registers(plan(v))),
        Constraint(
            f"{least} registers a thread or more, so at most so many blocks an SM",
            lambda v: int(v["blocks"]) * plan(v).threads * least <= REGISTERS,
        ),
        Constraint(
            "without splits there is nothing to combine, and no least split",
            lambda v: (
                int(v["splits"]) > 1
                or (v["combine"] == "kernel" and int(v["split_keys"]) == LEAST_SPLIT)
            ),
        ),
    )
