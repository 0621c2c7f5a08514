"""Compile an attention template once and run it on many inputs; what its tests share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import Array, assert_matches, compile_function, run_kernel

from wattune.ops import Problem, operator
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template, templates_for


def values_of(
    problem: Problem, target: Target, **knobs: Value
) -> tuple[Template, dict[str, Value]]:
    """Return the first template that serves the problem, and its defaults with some changed."""
    template = templates_for(problem, target)[0]
    space = template.space(problem, target)
    found = {**space.default(), **knobs}
    space.check(found)
    return template, found


def run(
    problem: Problem, inputs: Mapping[str, Array], target: Target | None = None, **knobs: Value
) -> dict[str, Array]:
    """Run the default schedule, some knobs changed."""
    target = target or vectors()
    template, values = values_of(problem, target, **knobs)
    return run_kernel(problem, target, template, values, inputs)


def check(problem: Any, target: Target | None = None, seed: int = 0, **knobs: Value) -> None:
    """Compare with the reference on ragged, empty and poisoned requests."""
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(seed))
    assert_matches(problem, run(problem, inputs, target, **knobs), op.reference(problem, inputs))


def without_tiles(target: Target) -> Target:
    """Return the target without AMX."""
    features = tuple(f for f in target.features if not f.startswith("amx"))
    return dataclasses.replace(target, features=features)


def vectors(threads: int = 1) -> Target:
    """Return this machine without AMX: most tests are of schedules on vector registers."""
    return without_tiles(Target.native(threads))


# For tests of what every template must do.
TARGETS = (
    pytest.param(vectors, id="vectors"),
    pytest.param(Target.native, id="tiles", marks=pytest.mark.isa("amx_tile", "amx_bf16")),
)


class Compiled:
    """A compiled schedule: the default one with some knobs changed, allowed values or not."""

    def __init__(self, problem: Any, target: Target | None = None, **knobs: Value) -> None:
        self.problem = problem
        self.target = target or vectors()
        self.template, values = values_of(problem, self.target)
        self.values = {**values, **knobs}
        function = self.template.lower(problem, self.target, self.values)
        self.kernel = compile_function(function, self.target)

    def run(self, inputs: Mapping[str, Array], in_place: Sequence[str] = ()) -> dict[str, Array]:
        """Run it."""
        parts = (self.problem, self.target, self.template, self.values, inputs)
        return run_kernel(*parts, compiled=self.kernel, in_place=in_place)

    def check(self, inputs: Mapping[str, Array], in_place: Sequence[str] = ()) -> dict[str, Array]:
        """Run it and compare with the reference."""
        got = self.run(inputs, in_place)
        lengths = inputs["seq_lens"]
        problem = resized(self.problem, lengths)
        assert_matches(problem, got, operator(problem.operator).reference(problem, inputs))
        return got


def resized(problem: Any, lengths: Sequence[int] | Array) -> Any:
    """Return the problem with the batch and context of these lengths."""
    context = max(int(problem.context), *(int(length) for length in lengths))
    return dataclasses.replace(problem, batch=len(lengths), context=context)


def ragged(problem: Any, lengths: Sequence[int], seed: int = 0) -> dict[str, Array]:
    """Draw inputs for requests of these lengths; rows that no query sees are poison."""
    problem = resized(problem, lengths)
    op: Any = operator(problem.operator)
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = op._inputs(problem, np.array(lengths, np.int32), rng, hard=True)
    if "page_table" in inputs and problem.window:
        free_pages(problem, inputs)
    return {**inputs, **op.poisoned(problem, inputs)}


def free_pages(problem: Any, inputs: dict[str, Array]) -> None:
    """Take the pages from a request that the window has left behind, and those it has not yet."""
    table = inputs["page_table"].copy()
    for request, length in enumerate(inputs["seq_lens"]):
        first = max(0, int(length) - problem.visible) // problem.page_size
        table[request, :first] = -1
        table[request, -(-int(length) // problem.page_size) :] = -1
    inputs["page_table"] = table
