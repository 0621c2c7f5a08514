"""The gate's operator: its reference, inputs and fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import MoeGate, operator, problem_from_json

OPERATOR = operator("moe_gate")


def test_equals_a_plain_loop() -> None:
    problem = MoeGate(3, 5, 7)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(0))
    found = OPERATOR.reference(problem, inputs)["router_logits"]
    x, w = (inputs[name].tolist() for name in ("hidden_states", "gate_weight"))
    expected = [[sum(a * b for a, b in zip(r, e, strict=True)) for e in w] for r in x]
    assert found.tolist() == np.asarray(expected, np.float32).tolist()
    assert inputs["hidden_states"].dtype.name == "bfloat16"
    assert inputs["gate_weight"].dtype == np.float32


def test_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    problem = MoeGate(9, 16, 96, dtype="float32")
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(1))
    x, w = (torch.from_numpy(inputs[name]) for name in ("hidden_states", "gate_weight"))
    tolerance = OPERATOR.tolerance(problem, "router_logits")
    np.testing.assert_allclose(
        torch.nn.functional.linear(x, w).numpy(),
        OPERATOR.reference(problem, inputs)["router_logits"],
        rtol=tolerance.rtol,
        atol=tolerance.atol,
    )


def test_the_tolerance_refuses_a_product_of_bfloat16() -> None:
    problem = MoeGate(40, 64, 1024)
    inputs = OPERATOR.make_inputs(problem, np.random.default_rng(2))
    rounded = {**inputs, "gate_weight": inputs["gate_weight"].astype(inputs["hidden_states"].dtype)}
    right, wrong = (OPERATOR.reference(problem, i)["router_logits"] for i in (inputs, rounded))
    allowed = OPERATOR.tolerance(problem, "router_logits")
    near = np.abs(wrong - right) <= allowed.atol + allowed.rtol * np.abs(right)
    assert near.mean() < 0.05


def test_infinities_stay_in_their_tokens() -> None:
    problem = MoeGate(8, 16, 64)
    inputs = OPERATOR.verification_inputs(problem, np.random.default_rng(3))
    found = OPERATOR.reference(problem, inputs)["router_logits"]
    assert np.isinf(found[1::4]).all()
    assert (found[2::4] == 0).all()
    assert np.isfinite(found[::4]).all()
    assert not np.isnan(found).any()


def test_one_weight_for_all_numbers_of_tokens() -> None:
    names = {MoeGate(tokens, 64, 128).shared_data() for tokens in (1, 8, 100)}
    assert len(names) == 1
    assert MoeGate(1, 64, 128, weight_dtype="bfloat16").shared_data() not in names


def test_random_weights_are_plain_numbers() -> None:
    for dtype in ("float32", "bfloat16"):
        problem = MoeGate(1, 64, 128, weight_dtype=dtype)
        data = OPERATOR.random_bytes(problem, "weight", 3 << 20, 0)
        kind = np.float32 if dtype == "float32" else "bfloat16"
        values = data.view(np.dtype(kind)).astype(np.float32)
        assert data.nbytes == 3 << 20
        assert np.isfinite(values).all()
        assert 0.9 < values.std() < 1.1


def test_work_and_json() -> None:
    problem = MoeGate(2, 256, 4096)
    work = OPERATOR.work(problem)
    assert work.bytes == 256 * 4096 * 4 + 2 * (4096 * 2 + 256 * 4)
    assert work.operations == 2 * 2 * 256 * 4096
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert OPERATOR.parse_shape("2x256x4096") == problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"num_experts": 5000}, "an integer from 1 to 4096"),
        ({"hidden_size": 1.5}, "hidden_size is 1.5"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"weight_dtype": "float64"}, "weight_dtype is 'float64'"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        MoeGate(**{"tokens": 1, "num_experts": 8, "hidden_size": 64, **fields})
