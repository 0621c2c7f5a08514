"""The knobs of attention kernels on GPUs: values, defaults, constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wattune.ops import operator
from wattune.schedules.areas import round_up
from wattune.schedules.attention import Items
from wattune.schedules.cuda.attention.plan import KEYS, ROWS, SLAB, Plan, Shares
from wattune.schedules.cuda.attention.sides import LONG
from wattune.schedules.space import Constraint, Knob, Value, Values
from wattune.schedules.target import Target

REGISTERS = 65536
MOST_REGISTERS = 255
# Registers of a thread beside sums, queries, scores and operands.
_SPARE = 56
# Shared memory of a block that the driver keeps.
RESERVED = 1024
_WARPS = 16
# Keys of a split below which merging costs more than it saves.
LEAST_SPLIT = 256
# What products of a warpgroup need.
_GROUPED: dict[str, Value] = {"long_side": "warpgroup", "shape": "xor", "queries": "registers"}
STAGES: tuple[int, ...] = (2, 3, 4, 6, 8)
# The same for all targets, so that one's default is a schedule of another too.
SPLITS: tuple[int, ...] = (*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), 40, 48, 56, 64)


def hopper(target: Target) -> bool:
    """Say whether the target has the copy engine and dependent launches."""
    return target.arch >= "sm_90"


def warpgroups(problem: Any, target: Target) -> bool:
    """Say whether the target multiplies by warpgroups, and rows are whole slabs."""
    return target.arch == "sm_90a" and problem.head_dim % SLAB == problem.value_dim % SLAB == 0


def plan_of(problem: Any, target: Target, values: Mapping[str, Value]) -> Plan:
    """Return the schedule."""
    plan = Plan(
        problem=problem,
        keys=int(values["keys"]),
        teams=int(values["teams"]),
        row_warps=int(values["row_warps"]),
        rows=int(values["rows"]),
        stages=int(values["stages"]),
        copies=str(values["copies"]),
        shape=str(values["shape"]),
        queries=str(values["queries"]),
        long_side=str(values["long_side"]),
        roles=str(values["roles"]),
        polynomial=int(values["polynomial"]),
        splits=int(values["splits"]),
        split_keys=int(values["split_keys"]),
        combine=str(values["combine"]),
        blocks=int(values["blocks"]),
        dependent=hopper(target),
        grid=0,
    )
    return replace(plan, grid=target.cores * room(plan, target)) if values["persistent"] else plan


def registers_of(plan: Plan) -> int:
    """Estimate the registers of a thread: accumulators, held queries, operands."""
    tiles, problem = plan.rows // ROWS, plan.problem
    sums = 4 * tiles * (problem.value_dim // KEYS)
    scores = 4 * tiles * (plan.keys // KEYS)
    held = 2 * tiles * (problem.head_dim // KEYS) if plan.queries == "registers" else 4 * tiles
    return sums + scores + held + 6 * tiles + _SPARE


def room(plan: Plan, target: Target) -> int:
    """Return how many blocks fit an SM at once, by shared memory and registers."""
    return room_of(plan, registers_of(plan), target)


def room_of(plan: Shares, registers: int, target: Target) -> int:
    """Return how many blocks fit an SM whose threads use so many registers."""
    by_shared = (target.l1 + RESERVED) // (plan.shared.bytes + RESERVED)
    by_registers = REGISTERS // (plan.threads * round_up(min(MOST_REGISTERS, registers), 8))
    return max(1, min(by_shared, by_registers))


def knobs(problem: Any, target: Target) -> tuple[Knob, ...]:
    """Return the knobs, in the words of `Plan`."""
    found = _defaults(problem, target)
    whole = problem.head_dim % 64 == problem.value_dim % 64 == 0
    listed = plan_of(problem, target, found).listed
    values: dict[str, tuple[Value, ...]] = {
        "keys": (16, 32),
        "teams": (1, 2, 4, 8),
        "row_warps": (1, 2, 4, 8),
        "rows": (8, 16, 32),
        "stages": STAGES,
        "copies": ("async", "bulk") if hopper(target) else ("async",),
        "shape": ("pad", "xor") if whole else ("pad",),
        "queries": ("registers", "shared"),
        "long_side": ("keys", "rows", "warpgroup")
        if warpgroups(problem, target)
        else ("keys", "rows"),
        "roles": ("alike", "producer") if hopper(target) else ("alike",),
        "polynomial": (0, 1, 2),
        "persistent": (False, True),
        "splits": SPLITS,
        "split_keys": (LEAST_SPLIT,) if listed else (LEAST_SPLIT, 512, 1024, 2048),
        "combine": ("kernel", "last"),
        "blocks": (0, 1, 2, 3, 4),
    }
    rules = constraints(problem, target)
    return tuple(
        Knob(name, _possible(name, options, found, rules), found[name])
        for name, options in values.items()
    )


def _possible(
    name: str, options: tuple[Value, ...], default: Values, rules: Sequence[Constraint]
) -> tuple[Value, ...]:
    """Return the values that some schedule has: the least one of those around them, or the default.

    Most points of a space should be schedules, or samples are hard to find.
    """
    least = {**default, "keys": 16, "rows": 8, "stages": 2, "shape": "pad", "queries": "shared"}
    least |= {"long_side": "keys", "roles": "alike", "persistent": False, "polynomial": 0}
    least |= {"splits": 2, "blocks": 0, "copies": "async", "combine": "kernel"}
    shapes: list[Values] = [
        {"teams": teams, "row_warps": warps} for teams, warps in ((2, 1), (1, 2), (1, 4))
    ]
    shapes += [{**shapes[0], "rows": LONG}, {**shapes[0], "copies": "bulk"}]
    shapes += [{"teams": 1, "row_warps": 8}, {**shapes[2], "rows": LONG, **_GROUPED}]

    def fits(value: Value) -> bool:
        return any(all(r.holds({**least, **s, name: value}) for r in rules) for s in shapes)

    return tuple(value for value in options if value == default[name] or fits(value))


def _defaults(problem: Any, target: Target) -> dict[str, Value]:
    """Choose a schedule: rows as they come, two blocks an SM, enough splits for all SMs.

    16 rows a warp keep sums and queries in registers; more rows take more warps of a team, which
    share its tiles, and multiply as warpgroups where they can. Of what shared memory allows, deep
    rings in two blocks keep the most bytes on their way: one block loads while the other merges.
    """
    rows = round_up(Items(problem).item_rows, ROWS)
    found: dict[str, Value] = {
        "keys": 16,
        "teams": 4,
        "row_warps": min(4, 1 << (-(-rows // 16) - 1).bit_length()) if rows > 16 else 1,
        "rows": min(rows, 16),
        "stages": 2,
        "copies": "async",
        "shape": "pad",
        "queries": "registers",
        "long_side": "keys",
        "roles": "alike",
        "polynomial": 0,
        "persistent": False,
        "splits": 1,
        "split_keys": LEAST_SPLIT,
        "combine": "kernel",
        "blocks": 0,
    }
    if found["rows"] == LONG:
        # Fewer shuffles, and no matrix is turned over.
        found["long_side"] = "rows"
    if int(found["row_warps"]) > 1:
        found["teams"] = 2
        found["keys"] = 32
    if warpgroups(problem, target) and rows > 3 * LONG:
        # From there on four warps have rows, which otherwise read all keys each for itself.
        found = _grouped(problem, target, found, wide=rows > 4 * LONG)
    tiles = -(-problem.visible // plan_of(problem, target, found).block_keys)
    alone = 6 if found["teams"] == 1 else 4
    for blocks, stages in ((2, 4), (2, 3), (1, alone), (1, 4), (2, 2), (1, 3), (1, 2)):
        # A window is over before a deep ring is full.
        found["stages"] = max(s for s in STAGES if s <= min(stages, max(2, tiles + 1)))
        if room(plan_of(problem, target, found), target) >= blocks:
            break
    plan = plan_of(problem, target, found)
    found["splits"] = splits_for(plan, target, room(plan, target))
    return found


def _grouped(problem: Any, target: Target, found: dict[str, Value], wide: bool) -> dict[str, Value]:
    """Return the schedule by warpgroups, two in a team that is ``wide``, if registers allow it."""
    shape = {"teams": 1 if wide else 2, "row_warps": 8 if wide else 4, "keys": 32}
    grouped = {**found, **shape, **_GROUPED}
    fits = registers_of(plan_of(problem, target, grouped)) <= MOST_REGISTERS
    return grouped if fits else found


def splits_for(plan: Shares, target: Target, blocks: int) -> int:
    """Return the least splits that keep all SMs busy to the end."""
    problem: Any = plan.problem
    items = int(problem.batch * problem.kv_heads * plan.items * plan.row_tiles)
    slots = target.cores * blocks
    op: Any = operator(problem.operator)
    keys = op.keys_read(problem) // plan.items
    most = max(1, min(64, keys // LEAST_SPLIT))

    def use(splits: int) -> float:
        waves = items * splits / slots
        return waves / -(-items * splits // slots)

    allowed: list[int] = [s for s in SPLITS if s <= most]
    best = max(use(s) for s in allowed)
    return next(s for s in allowed if use(s) >= 0.95 * best)


def constraints(problem: Any, target: Target) -> tuple[Constraint, ...]:
    """Return the rules between knobs."""

    def plan(values: Mapping[str, Value]) -> Plan:
        return plan_of(problem, target, values)

    def registers(values: Mapping[str, Value]) -> bool:
        made = plan(values)
        most = REGISTERS // (made.threads * max(1, made.blocks))
        return registers_of(made) <= min(MOST_REGISTERS, most)

    return (
        Constraint(
            f"a block has 2 to {_WARPS} warps",
            lambda v: 2 <= int(v["teams"]) * int(v["row_warps"]) <= _WARPS,
        ),
        Constraint(
            "every warp must have a query row",
            lambda v: (
                (int(v["row_warps"]) - 1) * int(v["rows"]) < plan(v).item_rows
                and int(v["rows"]) <= max(ROWS, 2 * plan(v).item_rows - 1)
            ),
        ),
        Constraint(
            f"blocks must fit {target.l1} bytes of shared memory",
            lambda v: (
                max(1, int(v["blocks"])) * (plan(v).shared.bytes + RESERVED) <= target.l1 + RESERVED
            ),
        ),
        Constraint("registers must hold sums, queries and scores", registers),
        Constraint(
            "the long side is full",
            lambda v: v["long_side"] == "keys" or int(v["rows"]) % LONG == 0,
        ),
        Constraint(
            "a warpgroup has 16 rows a warp, held queries and swizzled tiles",
            lambda v: (
                v["long_side"] != "warpgroup"
                or (
                    int(v["row_warps"]) % 4 == 0
                    and int(v["rows"]) == LONG
                    and v["copies"] == "async"
                    and all(v[name] == value for name, value in _GROUPED.items())
                )
            ),
        ),
        Constraint(
            "bulk copies fill padded rows",
            lambda v: v["copies"] == "async" or v["shape"] == "pad",
        ),
        Constraint(
            "a producer needs the copy engine",
            lambda v: v["roles"] == "alike" or v["copies"] == "bulk",
        ),
        Constraint(
            "without splits there is nothing to combine",
            lambda v: int(v["splits"]) > 1 or v["combine"] == "kernel",
        ),
        Constraint(
            "without splits there is no least split",
            lambda v: int(v["splits"]) > 1 or int(v["split_keys"]) == LEAST_SPLIT,
        ),
    )
