"""Peers of routing: each passes beside the reference, and fails beside another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wattune.compiler.bench.case import Setup
from wattune.compiler.bench.data import draw, work_of
from wattune.compiler.bench.implementations import implementations
from wattune.ops import MoeAlignBlockSize, MoeGate, MoeTopk, Problem

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("torch_settings")

GROUPS: dict[str, Any] = {"num_expert_group": 4, "topk_group": 2}
PROBLEMS: tuple[Problem, ...] = (
    MoeGate(7, 24, 96),
    MoeGate(7, 24, 96, dtype="float32", weight_dtype="bfloat16"),
    MoeTopk(40, 24, 3),
    MoeTopk(40, 24, 3, scoring_func="softmax"),
    MoeTopk(40, 24, 3, e_score_correction_bias=True, **GROUPS),
    MoeAlignBlockSize(40, 24, 3),
)
CASES = [
    pytest.param(problem, name, id=f"{problem}-{name}")
    for problem in PROBLEMS
    for name in implementations(problem.operator)
    if name != "wattune"
]


@pytest.mark.parametrize(("problem", "name"), CASES)
def test_peers(problem: Problem, name: str) -> None:
    data = draw(problem, 0)
    setup = Setup(problem, data.inputs, data.expected, work_of(problem, 0).bytes, 1, 1 << 16)
    case: Any = implementations(problem.operator)[name](setup)
    assert case.error() <= case.tolerance
    assert case.moved > 0
    for copy in range(case.copies):
        case.call(copy)
    case.expected = case.expected[::-1]
    comparable = getattr(case, "comparable", True)
    assert (case.error() > case.tolerance) == comparable


def test_the_gates_weight_rotates() -> None:
    problem = MoeGate(1, 24, 96)
    data = draw(problem, 0)
    setup = Setup(problem, data.inputs, data.expected, 1, 1, 5 * 24 * 96 * 4)
    case = implementations("moe_gate")["torch_linear_fp32"](setup)
    assert case.copies >= 5
    for copy in range(case.copies):
        np.testing.assert_array_equal(case.call(copy), case.call(0))
