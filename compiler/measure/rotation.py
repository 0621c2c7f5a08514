"""What rotates during a cold measurement: the arguments that lie in memory between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.cases import as_bytes
from wattune.compiler.measure.place import Fill
from wattune.compiler.measure.pool import MOST_VIEWS, PARTLY_READ, Pool, Rotation, stride_of
from wattune.ops import Argument, Problem, operator
from wattune.ops.operator import Array


def rotations(
    pool: Pool,
    problem: Problem,
    sizes: Mapping[str, int],
    footprint: int,
    fill: Callable[[Argument], Fill],
    most_sets: int = MOST_VIEWS,
) -> list[tuple[int, Rotation]]:
    """View the pool as copies of the arguments that lie in memory between calls.

    ``sizes`` are the bytes of every argument; a ``footprint`` of 0 is hot: one copy. Returns the
    index of each such argument with its copies.
    """
    arguments = operator(problem.operator).arguments(problem)
    moving = [(i, a) for i, a in enumerate(arguments) if a.role in ("packed", "state")]
    one_set = sum(stride_of(sizes[a.name]) for _, a in moving)
    if not moving:
        return []
    name, moved = problem.operator, operator(problem.operator).work(problem).bytes
    if footprint and moved < PARTLY_READ * one_set:
        sets = min(most_sets, max(1, footprint // moved))
        return [
            (i, pool.views(name, a.name, size, sets, spread, fill(a)))
            for i, a in moving
            for size in (sizes[a.name],)
            for spread in (footprint * size // one_set,)
        ]
    sets = min(most_sets, max(1, footprint // one_set))
    return [(i, pool.copies(name, a.name, sizes[a.name], sets, fill(a))) for i, a in moving]


def filler(
    problem: Problem, draw: Callable[[], Mapping[str, Array]], seed: int
) -> Callable[[Argument], Fill]:
    """Return what fills an argument's region; ``draw`` gives the sources of copied arguments."""

    def fill_of(argument: Argument) -> Fill:
        def fill(count: int) -> NDArray[np.uint8]:
            source = argument if argument.role == "state" else argument.source
            if argument.layout_dependent or source is None:
                op = operator(problem.operator)
                return op.random_bytes(problem, argument.name, count, seed)
            # A copied argument holds numbers: any bytes may be subnormal or not a number.
            return np.resize(as_bytes(draw()[source.name]), count)

        return fill

    return fill_of
