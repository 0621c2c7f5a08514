"""The learned gate: references against plain loops, the state machine, fields."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from wattune.errors import ProblemError
from wattune.ops import AttnGate, AttnGateCompress, operator, problem_from_json
from wattune.ops.attn_gate_compress import POOLINGS
from wattune.ops.gate_parts import cos_sin_table, rms_norm, rotate

GATE = operator("attn_gate")
COMPRESS = operator("attn_gate_compress")


def rotated(row: Any, position: int, theta: float = 1e6) -> Any:
    """Rotate pairs (i, i + half) as complex numbers."""
    half = len(row) // 2
    angles = position * theta ** (-np.arange(half) / half)
    turned = (row[:half] + 1j * row[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def test_rotation_is_a_complex_product() -> None:
    row = np.random.default_rng(0).standard_normal(16)
    table = cos_sin_table(50, 16)
    np.testing.assert_allclose(rotate(row, table, 31), rotated(row, 31), atol=1e-5)
    # Positions beyond the table use its last row.
    np.testing.assert_array_equal(rotate(row, table, 70), rotate(row, table, 49))


def test_rms_norm_of_known_values() -> None:
    found = rms_norm(np.array([3.0, -4.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, np.array([3, -8]) / np.sqrt(12.5), rtol=1e-6)
    np.testing.assert_allclose(rms_norm(np.full(4, 1e-3), np.ones(4)), 1e-3 / np.sqrt(2e-6))


@pytest.mark.parametrize("mode", ["qproj", "qavgproj", "qavg"])
@pytest.mark.parametrize(("norm", "rope"), [(True, True), (False, False)])
def test_logits_equal_a_plain_loop(mode: str, norm: bool, rope: bool) -> None:
    problem = AttnGate(3, 70, 6, 2, 8, 8, 16, mode, norm, rope, "float32")
    inputs = GATE.verification_inputs(problem, np.random.default_rng(0))
    got = GATE.reference(problem, inputs)["logits"]
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        for head, block in itertools.product(range(2), range(got.shape[2])):
            if block * 16 >= length:
                assert got[request, head, block] == -np.inf
                continue
            q = inputs["q"][request, 3 * head : 3 * head + 3].astype(np.float64)
            if mode == "qproj":
                query = sum(q[i] @ inputs["wq"][head, i] for i in range(3))
            else:
                query = q.mean(0) @ inputs["wq"][head] if mode == "qavgproj" else q.mean(0)
            if norm:
                query = query / np.sqrt((query**2).mean() + 1e-6) * inputs["q_norm"]
            if rope:
                query = rotated(query, length - 1)
            expected = query @ inputs["k_compressed"][request, head, block] / np.sqrt(8)
            assert got[request, head, block] == pytest.approx(expected, abs=1e-5)


def test_the_incomplete_last_block_has_logit_zero() -> None:
    problem = AttnGate(1, 70, 2, 2, 8, 8, 16)
    logits = GATE.reference(problem, GATE.make_inputs(problem, np.random.default_rng(0)))["logits"]
    assert (logits[:, :, -1] == 0).all()
    assert logits[:, :, :-1].all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("rule", ["first", "last"])
def test_one_block_is_pooled_projected_normed_and_rotated(pooling: str, rule: str) -> None:
    problem = AttnGateCompress(1, 8, 1, 4, 4, 4, 8, pooling, position_rule=rule, dtype="float32")
    inputs = COMPRESS.make_inputs(problem, np.random.default_rng(0))
    keys = inputs["k"][0, 4:, 0].astype(np.float64)
    pools = {"max": keys.max(0), "min": keys.min(0), "avg": keys.mean(0)}
    # Always in this order, whatever subset.
    pooled = np.concatenate([pools[n] for n in ("max", "min", "avg") if n in pooling])
    row = pooled @ inputs["wk"][0]
    row = row / np.sqrt((row**2).mean() + 1e-6) * inputs["k_norm"]
    got = COMPRESS.reference(problem, inputs)["k_compressed"][0, 0, 1]
    position = 4 if rule == "first" else 7
    np.testing.assert_allclose(got, rotated(row, position), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rest", [0, 1, 15])
def test_steps_equal_one_call(rest: int) -> None:
    length = 16 * 3 + rest
    step = AttnGateCompress(1, 80, 2, 8, 8, 16, 1)
    once = AttnGateCompress(1, 80, 2, 8, 8, 16, length)
    rng = np.random.default_rng(rest)
    inputs = COMPRESS.make_inputs(once, rng)
    inputs["seq_lens"][:] = length
    whole = COMPRESS.reference(once, inputs)
    states = {name: inputs[name] for name in ("k_remainder", "k_compressed")}
    for position in range(length):
        now = {**inputs, **states, "k": inputs["k"][:, position : position + 1]}
        now["seq_lens"] = np.array([position + 1], np.int32)
        states = COMPRESS.reference(step, now)
    for name, want in whole.items():
        np.testing.assert_array_equal(states[name], want)


def test_requests_keep_their_own_lengths() -> None:
    # One fills a block, one opens one, one is in the middle, one is empty.
    problem = AttnGateCompress(4, 64, 1, 8, 8, 16)
    inputs = COMPRESS.make_inputs(problem, np.random.default_rng(3))
    inputs["k_compressed"][:] = 7
    inputs["seq_lens"] = np.array([32, 33, 40, 0], np.int32)
    got = COMPRESS.reference(problem, inputs)
    changed = (got["k_compressed"] != 7).any((1, 3))
    assert [np.flatnonzero(row).tolist() for row in changed] == [[1], [2], [], []]
    assert not got["k_compressed"][1, :, 2].any()
    kept = (got["k_remainder"] != inputs["k_remainder"]).any((1, 3))
    assert [np.flatnonzero(row).tolist() for row in kept] == [[15], [0], [7], []]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "avgmax"),
        ("position_rule", "middle"),
        ("gate_dim", 7),
        ("query_tokens", 0),
        ("block_size", 0),
        ("norm", 2),
        ("dtype", "int8"),
    ],
)
def test_wrong_fields_of_compression_are_named(field: str, value: Any) -> None:
    fields = {"batch": 1, "context": 64, "kv_heads": 2, "head_dim": 8, field: value}
    with pytest.raises(ProblemError, match=field):
        AttnGateCompress(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [("query_mode", "qmax"), ("query_heads", 3), ("gate_dim", 5), ("rope", "yes")],
)
def test_wrong_fields_of_the_gate_are_named(field: str, value: Any) -> None:
    fields = {"batch": 1, "context": 64, "query_heads": 4, "kv_heads": 2, "head_dim": 8}
    with pytest.raises(ProblemError, match=field):
        AttnGate(**{**fields, field: value})
    with pytest.raises(ProblemError, match="gate_dim"):
        AttnGate(1, 64, 4, 2, 8, gate_dim=16, query_mode="qavg")


@pytest.mark.parametrize(
    "problem", [AttnGate(1, 64, 8, 2, 8, query_mode="qavgproj"), AttnGateCompress(1, 64, 2, 8)]
)
def test_json_and_shape(problem: Any) -> None:
    assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert GATE.parse_shape("1x64x8x2x8") == AttnGate(1, 64, 8, 2, 8)
    assert COMPRESS.parse_shape("1x64x2x8") == AttnGateCompress(1, 64, 2, 8)


def test_work() -> None:
    # Weights, queries, entries in 16 bits; logits in 32.
    gate = AttnGate(1, 64, 4, 2, 8, 8, 16)
    assert GATE.work(gate).bytes == 2 * (2 * 2 * 8 * 8 + 4 * 8 + 2 * 4 * 8) + 4 * 2 * 4
    full, open_ = (AttnGateCompress(1, n, 2, 8, 8, 16) for n in (64, 63))
    # A key in and out, the other 15 of the block, the entry; weights only where a block is full.
    assert COMPRESS.work(full).bytes == 2 * (2 * 24 * 8 + 2 * (2 * 8 + 15 * 8 + 8))
    assert COMPRESS.work(open_).bytes == 2 * 2 * 2 * 8
    assert COMPRESS.work(open_).operations == 0
