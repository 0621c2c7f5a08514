"""Random moves in one space: mutation, mixing, transplanting to another template, stratifying."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from wattune.schedules.space import Knob, Space, Value, Values

# How often a random move is tried before the caller is told that none was valid.
ATTEMPTS = 30
# The chance that a mutated knob jumps anywhere instead of one step.
JUMP = 0.3
# The chance that a mutation changes one more knob, and so on.
AGAIN = 0.4


def valid(space: Space, values: Mapping[str, Value]) -> bool:
    """Say whether known values satisfy the constraints."""
    return all(rule.holds(values) for rule in space.constraints)


def first_valid(space: Space, draw: Callable[[], Values]) -> Values | None:
    """Return the first drawn point that the constraints allow; None after `ATTEMPTS`."""
    for _ in range(ATTEMPTS):
        values = draw()
        if valid(space, values):
            return values
    return None


def mutated(space: Space, values: Mapping[str, Value], rng: np.random.Generator) -> Values | None:
    """Return a point with one knob or a few changed, mostly by one step."""
    free = [knob for knob in space.knobs if len(knob.values) > 1]
    if not free:
        return None

    def draw() -> Values:
        changed = dict(values)
        count = min(int(rng.geometric(1 - AGAIN)), len(free))
        for at in rng.permutation(len(free))[:count]:
            knob = free[at]
            changed[knob.name] = _moved(knob, changed[knob.name], rng)
        return changed

    return first_valid(space, draw)


def mixed(
    space: Space,
    mine: Mapping[str, Value],
    theirs: Mapping[str, Value],
    rng: np.random.Generator,
    share: float = 0.5,
) -> Values | None:
    """Return ``mine`` with about a ``share`` of the knobs that ``theirs`` has too taken from it."""
    fitting = {k.name: theirs[k.name] for k in space.knobs if theirs.get(k.name) in k.values}
    return first_valid(
        space, lambda: {**mine, **{n: v for n, v in fitting.items() if rng.random() < share}}
    )


def stratified(knob: Knob, count: int, rng: np.random.Generator) -> list[Value]:
    """Return values in random order that cover the knob's as evenly as ``count`` allows."""
    rounds = -(-count // len(knob.values))
    order = [at for _ in range(rounds) for at in rng.permutation(len(knob.values))]
    return [knob.values[at] for at in rng.permutation(np.array(order[:count], dtype=int))]


def distance(one: Mapping[str, Value], other: Mapping[str, Value]) -> int:
    """Count the knobs in which two points differ."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def _moved(knob: Knob, value: Value, rng: np.random.Generator) -> Value:
    if rng.random() < JUMP:
        near = tuple(v for v in knob.values if v != value)
    else:
        near = knob.neighbours(value)
    return near[rng.integers(len(near))]
