"""Grouped GEMM and fused experts: references against plain loops, formats, every field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ArgumentError, ProblemError
from wattune.ops import FusedMoe, GroupedGemm, operator, problem_from_json
from wattune.ops.expert_weights import FORMATS, join_int4, random_words
from wattune.ops.experts import route, touched
from wattune.ops.quantize import quantize_per_token

FUSED, GROUPED = operator("fused_moe"), operator("grouped_gemm")


def drawn(problem: Any, hard: bool = False) -> dict[str, Any]:
    op = operator(problem.operator)
    draw = op.verification_inputs if hard else op.make_inputs
    return draw(problem, np.random.default_rng(3))


def rounded(row: Any, format: str) -> Any:
    """Round activations as the definition says, one row at a time."""
    wide = np.asarray(row, np.float32)
    if format == "bf16":
        bits = wide.view(np.uint32).astype(np.uint64)
        kept = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
        return kept.astype(np.uint32).view(np.float32).astype(np.float64)
    q, scale = quantize_per_token(wide[None])
    return q[0].astype(np.float64) / float(scale[0])


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("hard", [False, True])
def test_fused_equals_a_plain_loop(format: str, hard: bool) -> None:
    problem = FusedMoe(5, 4, 2, 128, 128, dtype="float32", format=format)
    inputs = drawn(problem, hard)
    w1, w2 = (FORMATS[format].decode(inputs[n]) for n in ("gate_up_proj", "down_proj"))
    expected = np.zeros((5, 128))
    for token in range(5):
        x = rounded(inputs["hidden_states"][token], format)
        for slot, expert in enumerate(inputs["topk_ids"][token]):
            if expert < 0:
                continue
            gate, up = w1[expert, :128] @ x, w1[expert, 128:] @ x
            h = rounded(gate / (1 + np.exp(-gate)) * up, format)
            expected[token] += float(inputs["topk_weights"][token, slot]) * (w2[expert] @ h)
    np.testing.assert_allclose(FUSED.reference(problem, inputs)["out"], expected, 1e-5, 1e-6)


def test_grouped_equals_a_plain_loop() -> None:
    problem = GroupedGemm(4, 5, 3, 7, 11, dtype="float32")
    inputs = drawn(problem, hard=True)
    got = GROUPED.reference(problem, inputs)["y"]
    for token, slot in np.ndindex(4, 3):
        expert = inputs["topk_ids"][token, slot]
        x = rounded(inputs["x"][token], "bf16")
        want = inputs["weights"][expert].astype(np.float64) @ x if expert >= 0 else np.zeros(7)
        np.testing.assert_allclose(got[token, slot], want, 1e-6, 1e-7)


def test_experts_elsewhere_add_nothing() -> None:
    problem = FusedMoe(2, 3, 2, 8, 8)
    inputs = drawn(problem)
    inputs["topk_ids"][:] = -1
    inputs["topk_weights"][:] = np.nan
    assert not FUSED.reference(problem, inputs)["out"].any()


@pytest.mark.parametrize(("format", "step"), [("int8", 1 / 254), ("int4", 1 / 15)])
def test_formats_round_to_the_nearest_step(format: str, step: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(-1, 1, (3, 5, 256)).astype(np.float32)
    values[0, 0] = 0
    coding = FORMATS[format]
    source = coding.encode(values)
    assert source.shape == (3, 5, coding.width(256))
    found = coding.decode(source)
    assert not found[0, 0].any()
    assert np.abs(found - values).max() <= 1.1 * step
    coding.poison(source[1])
    after = coding.decode(source)
    assert np.isnan(after[1]).all()
    assert np.isfinite(after[[0, 2]]).all()


def test_int4_takes_anybodys_codes() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256) % 16
    scale, zero = np.array([[0.5, 2.0]]), np.array([[8.0, 0.0]])
    found = FORMATS["int4"].decode(join_int4(codes, scale, zero))
    np.testing.assert_array_equal(found[0, :128], (codes[0, :128] - 8.0) * 0.5)
    np.testing.assert_array_equal(found[0, 128:], codes[0, 128:] * 2.0)
    with pytest.raises(ArgumentError, match="130 columns; allowed: multiples of 128"):
        join_int4(np.zeros((1, 130), np.uint8), scale, zero)


def test_random_words_are_finite_in_every_format() -> None:
    words = random_words(4096, 0)
    assert np.isfinite(words.view(np.float16).astype(np.float64)).all()
    assert np.isfinite(words.view(np.float32)).all()
    assert np.isfinite((words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)).all()


def test_skew_concentrates_the_routing_and_work_follows() -> None:
    even, skewed = FusedMoe(8, 64, 4, 32, 32), FusedMoe(8, 64, 4, 32, 32, skew=2.0)
    assert touched(skewed) < touched(even) < 32
    assert FUSED.work(skewed).bytes < FUSED.work(even).bytes
    for problem in (even, skewed):
        ids = route(problem)
        assert all(len(set(row)) == 4 for row in ids.tolist())
        np.testing.assert_array_equal(ids, drawn(problem)["topk_ids"])
        expert = 3 * 32 * 32 * 2
        assert FUSED.work(problem).bytes // expert == touched(problem)


def test_mimo_v2_flash_moves_what_its_specification_says() -> None:
    """0.403 GB for one token; 57.4 distinct experts of 64 pairs for eight, on average."""
    one, eight = FUSED.examples()
    assert abs(FUSED.work(one).bytes - 0.403e9) < 1e6
    assert 50 <= touched(eight) <= 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"top_k": 5}, "top_k is 5; allowed: an integer from 1 to 4"),
        ({"format": "int3"}, "format is 'int3'; allowed: bf16, int8, int4"),
        ({"format": "int4"}, "hidden_size is 8; allowed: a multiple of 128 with format int4"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"skew": -1}, "skew is -1"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    sizes = {"tokens": 1, "num_experts": 4, "top_k": 2, "hidden_size": 8, "intermediate_size": 8}
    with pytest.raises(ProblemError, match=message):
        FusedMoe(**{**sizes, **fields})


@pytest.mark.parametrize("problem", [FusedMoe(3, 8, 2, 64, 32), GroupedGemm(3, 8, 2, 64, 32)])
def test_json_shapes_and_shared_data(problem: Any) -> None:
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    op = operator(problem.operator)
    assert op.parse_shape("3x8x2x64x32") == problem
    with pytest.raises(ProblemError, match="shape '3x8'"):
        op.parse_shape("3x8")
    assert problem.shared_data() == op.parse_shape("128x8x4x64x32", skew=1.0).shared_data()
    assert problem.shared_data() != op.parse_shape("3x8x2x64x32", format="int8").shared_data()
