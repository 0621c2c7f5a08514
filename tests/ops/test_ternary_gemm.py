"""The reference against a plain loop, and every field checked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError, UnknownNameError
from wattune.ops import TernaryGemm, operator, problem_from_json
from wattune.ops.quantize import quantize_per_token

OPERATOR = operator("ternary_gemm")


def inputs_of(problem: TernaryGemm) -> dict[str, Any]:
    return OPERATOR.make_inputs(problem, np.random.default_rng(3))


def test_sums_equal_a_plain_loop() -> None:
    problem = TernaryGemm(3, 7, 11, dtype="int8")
    inputs = inputs_of(problem)
    x, weights = inputs["x"].tolist(), inputs["weights"].tolist()
    expected = [[sum(a * b for a, b in zip(q, w, strict=True)) for w in weights] for q in x]
    got = OPERATOR.reference(problem, inputs)["y"]
    assert got.dtype == np.int32
    assert got.tolist() == expected


def test_sums_are_exact_at_the_largest_magnitude() -> None:
    problem = TernaryGemm(1, 1, 14336, dtype="int8")
    inputs = {
        "x": np.full((1, 14336), -128, np.int8),
        "weights": np.full((1, 14336), -1, np.int8),
    }
    assert OPERATOR.reference(problem, inputs)["y"].tolist() == [[128 * 14336]]


@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_scaling(scale: str) -> None:
    problem = TernaryGemm(4, 5, 30, scale=scale)
    inputs = inputs_of(problem)
    q, s = quantize_per_token(inputs["x"])
    sums = q.astype(np.int64) @ inputs["weights"].astype(np.int64).T
    expected = sums * inputs["scale"].astype(np.float64) / s.astype(np.float64)[:, None]
    np.testing.assert_array_equal(
        OPERATOR.reference(problem, inputs)["y"], expected.astype(np.float32)
    )


def test_int8_with_scale_divides_by_it() -> None:
    problem = TernaryGemm(2, 3, 8, dtype="int8", out_dtype="float32")
    inputs = inputs_of(problem)
    sums = inputs["x"].astype(np.float64) @ inputs["weights"].astype(np.float64).T
    expected = sums * inputs["scale"] / inputs["x_scale"][:, None]
    np.testing.assert_allclose(OPERATOR.reference(problem, inputs)["y"], expected, rtol=1e-6)


def test_quantisation_of_a_known_token() -> None:
    q, s = quantize_per_token(np.array([[1.0, -2.0, 0.5, 0.0]], np.float32))
    assert s.tolist() == [63.5]
    # 63.5 and 31.75: halves round to even.
    assert q.tolist() == [[64, -127, 32, 0]]


def test_quantisation_of_zeros_does_not_divide_by_zero() -> None:
    q, s = quantize_per_token(np.zeros((2, 5), np.float32))
    assert not q.any()
    assert np.isfinite(s).all()


def test_json_round_trip() -> None:
    problem = TernaryGemm(1, 2560, 6912, dtype="bfloat16", scale="row")
    data = json.loads(json.dumps(problem.to_json()))
    assert problem_from_json(data) == problem
    assert hash(problem_from_json(data)) == hash(problem)


def test_buckets_share_one_weight() -> None:
    one, many = TernaryGemm(1, 64, 64), TernaryGemm(128, 64, 64)
    assert one.shared_data() == many.shared_data()
    assert one.shared_data() != TernaryGemm(1, 64, 65).shared_data()
    assert one.static_key == many.static_key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"out_features": 2.5}, "out_features is 2.5"),
        ({"in_features": True}, "in_features is True"),
        ({"dtype": "float64"}, "dtype is 'float64'; allowed: float32, bfloat16, float16, int8"),
        ({"out_dtype": "int32"}, "out_dtype is 'int32'"),
        ({"scale": "column"}, "scale is 'column'; allowed: tensor, row"),
        ({"levels": 4}, "levels is 4"),
        ({"format": "i3"}, "format is 'i3'"),
        ({"format": "elut"}, "format is 'elut'"),
        ({"format": []}, "format is \\[\\]"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message.replace("(", "\\(")):
        TernaryGemm(**{"tokens": 1, "out_features": 8, "in_features": 8, **fields})


def test_wrong_json_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown operator 'gemm'; allowed: .*ternary_gemm"):
        problem_from_json({"operator": "gemm"})
    with pytest.raises(ProblemError, match="no field 'rows'"):
        problem_from_json({"operator": "ternary_gemm", "rows": 3})
    with pytest.raises(ProblemError, match="missing 1 required positional argument"):
        problem_from_json({"operator": "ternary_gemm", "tokens": 1, "out_features": 2})
    with pytest.raises(ProblemError, match="shape '1x2'"):
        OPERATOR.parse_shape("1x2")


def test_arguments_follow_the_signature() -> None:
    for problem in (
        TernaryGemm(1, 8, 8),
        TernaryGemm(1, 8, 8, dtype="int8"),
        TernaryGemm(1, 8, 8, dtype="int8", out_dtype="float32"),
    ):
        names = [a.name for a in OPERATOR.arguments(problem)]
        assert names == [n for n in OPERATOR.signature if n in names]
        reference = OPERATOR.reference(problem, inputs_of(problem))
        outputs = [a for a in OPERATOR.arguments(problem) if a.role == "output"]
        for argument in outputs:
            assert reference[argument.name].shape == argument.concrete(problem.sizes)
            assert str(reference[argument.name].dtype) == argument.dtype


def test_random_bytes_are_codes_of_both_radix_formats() -> None:
    data = OPERATOR.random_bytes(TernaryGemm(1, 8, 8), "weight", 4096, 0)
    assert data.max() < 3**5
    fields = np.stack([data >> 2 * i & 3 for i in range(4)])
    assert set(np.unique(fields)) == {0, 1, 2}
