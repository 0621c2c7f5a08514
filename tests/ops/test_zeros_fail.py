"""No operator's verification accepts outputs of zeros, whatever its tolerance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wattune.compiler.measure.verify import difference
from wattune.ops import FusedMoe, GroupedGemm, Problem, operator, operator_names

# Where what is typical takes gigabytes.
SMALL: dict[str, Problem] = {
    "fused_moe": FusedMoe(3, 8, 2, 128, 64),
    "grouped_gemm": GroupedGemm(3, 8, 2, 128, 64),
}


@pytest.mark.parametrize("name", operator_names())
def test_zeros_are_wrong(name: str) -> None:
    op, rng = operator(name), np.random.default_rng(0)
    problem = SMALL.get(name) or op.examples()[0]
    sizes = {n: min(s, 300 if n == "context" else 3) for n, s in problem.sizes.items()}
    problem = dataclasses.replace(problem, **sizes)
    for draw in (op.make_inputs, op.verification_inputs):
        for output, right in op.reference(problem, draw(problem, rng)).items():
            zeros = np.zeros_like(right)
            assert difference(zeros, right, op.tolerance(problem, output)), output
