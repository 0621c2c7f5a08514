"""Compile an attention template once and run it on many inputs; what its tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.schedules.kernels import Array, assert_matches, run_kernel

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
    target = target or Target.native(1)
    template, values = values_of(problem, target, **knobs)
    return run_kernel(problem, target, template, values, inputs)


def check(problem: Any, target: Target | None = None, seed: int = 0, **knobs: Value) -> None:
    """Compare with the reference on ragged, empty and poisoned requests."""
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(seed))
    assert_matches(problem, run(problem, inputs, target, **knobs), op.reference(problem, inputs))
