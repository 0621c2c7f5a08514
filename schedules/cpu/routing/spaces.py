"""Knobs of routing and what they cost."""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.routing import Routing
from wattune.schedules.cpu.lanes import lanes_knob
from wattune.schedules.cpu.routing.plan import Plan
from wattune.schedules.space import Constraint, Knob, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_GROUPS = (1, 2, 4, 8)
# Below so many experts for each that is chosen a bound leaves too many over.
_SELECTIVE = 4
# Tokens that take about as long as starting threads.
_GRAIN = 16
# Vector operations: of a logit, of an exponential, of a division.
_CLEAN, _EXP, _DIVIDE = 4, 16, 8


def knobs_of(routing: Routing, target: Target) -> tuple[Knob, ...]:
    """Return the knobs, defaults for this target."""
    lanes = lanes_knob(target)
    width = int(lanes.default)
    enough = next((g for g in _GROUPS if g * width >= 2 * routing.top_k), 0)
    compressing = target.has("avx512f", "avx512vl")
    selective = routing.num_experts >= _SELECTIVE * routing.top_k
    return (
        lanes,
        Knob("groups", (0, *_GROUPS), enough if selective else 0),
        Knob("block", (1, 4, 8, 16), 8),
        Knob("grain", (1, 4, 16, 64), _GRAIN),
        Knob("compress", (False, True) if compressing else (False,), compressing),
    )


def rules_of(routing: Routing) -> tuple[Constraint, ...]:
    """Return what a bound needs: as many maxima as experts are wanted, of some vectors each."""
    return (
        Constraint(
            "groups of maxima must be as many as the experts that are wanted",
            lambda v: not v["groups"] or int(v["groups"]) * int(v["lanes"]) >= routing.top_k,
        ),
        Constraint(
            "groups of maxima must have a vector of experts each",
            lambda v: int(v["groups"]) * int(v["lanes"]) < routing.num_experts + int(v["lanes"]),
        ),
    )


def plan_of(routing: Routing, target: Target, values: Mapping[str, Value]) -> Plan:
    """Return the plan of a schedule."""
    names = ("lanes", "groups", "block", "grain")
    lanes, groups, block, grain = (int(values[name]) for name in names)
    compress = bool(values["compress"])
    return Plan(routing, lanes, groups, block, grain, target.threads, compress)


def counts_of(plan: Plan, moved: float) -> Counts:
    """Count the vector operations of every step; ``moved`` is the bytes of the logits."""
    routing, lanes = plan.routing, plan.lanes
    scored = routing.e_score_correction_bias or (
        routing.scoring_func == "softmax" and not routing.renormalize
    )
    each = _CLEAN + (_EXP + _DIVIDE) * scored + 4 * routing.grouped
    vectors = float(plan.vectors * each)
    if plan.groups:
        entries = plan.groups * lanes
        vectors += plan.vectors * 10 + 3 * entries * plan.groups
        vectors += 4 * plan.ranked * plan.ranked / lanes + 4 * plan.ranked
    else:
        vectors += routing.top_k * (4 * plan.vectors + 4 * lanes.bit_length())
    moved += 8.0 * routing.tokens * routing.top_k
    return Counts(
        bytes={"memory": moved, "l2": moved, "l1": routing.tokens * 16.0 * routing.num_experts},
        operations={"alu": routing.tokens * vectors},
        tiles={"tokens": float(routing.tokens), "block": float(plan.block)},
        parallelism=float(max(1, routing.tokens // plan.grain)),
        registers=plan.vectors + 4.0,
        code=vectors,
    )
