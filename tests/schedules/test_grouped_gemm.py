"""Templates of grouped GEMM and fused experts against the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.schedules.cpu.grouped_gemm import TEMPLATES
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Template

Inputs = Mapping[str, Any]

# Odd sizes, tails of rows and columns, more pairs than experts and fewer; every format and dtype.
PROBLEMS = [
    FusedMoe(9, 5, 3, 37, 21),
    FusedMoe(13, 4, 2, 70, 50, dtype="float32", format="int8"),
    FusedMoe(7, 9, 2, 256, 128, format="int4"),
    FusedMoe(1, 6, 1, 64, 80, dtype="float32"),
    GroupedGemm(11, 5, 3, 45, 77, dtype="float32"),
    GroupedGemm(6, 3, 2, 33, 69, format="int8"),
    GroupedGemm(5, 3, 2, 50, 384, dtype="float32", format="int4"),
]
CASES = [
    pytest.param(template, problem, id=f"{template.name}-{problem}")
    for problem in PROBLEMS
    for template in TEMPLATES
    if template.operator == problem.operator
]


def target_of(template: Template, problem: Any, threads: int = 1) -> Target:
    """Return this machine, or what it has besides wider vectors."""
    native = Target.native(threads)
    return native if template.applies(problem, native) else Target.parse("cpu:avx2", threads)


def check(
    template: Template, problem: Any, target: Target, values: Values, drawn: Sequence[Inputs]
) -> None:
    """Compare a schedule with the reference on each of the inputs."""
    kernel = compile_function(template.lower(problem, target, values), target)
    op = operator(problem.operator)
    for inputs in drawn:
        got = run_kernel(problem, target, template, values, inputs, compiled=kernel)
        want = op.reference(problem, inputs)
        assert_matches(problem, got, want)
        # The tolerance of an element allows for one step of a rounding that is decided late.
        name = op.signature[-1]
        exact = want[name].astype(np.float64)
        distance = np.linalg.norm(got[name].astype(np.float64) - exact)
        assert distance <= 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(("template", "problem"), CASES)
def test_matches_reference(template: Template, problem: Any) -> None:
    target, op = target_of(template, problem), operator(problem.operator)
    space = template.space(problem, target)
    rng = np.random.default_rng(problem.tokens)
    drawn = [op.make_inputs(problem, rng), op.verification_inputs(problem, rng)]
    for values in (space.default(), space.sample(rng)):
        assert values is not None
        check(template, problem, target, values, drawn)
