"""Routing from libraries: no tokens, outputs whose size they decide, calls that are not cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wattune as wt
from wattune.errors import ArgumentError
from wattune.ops import MoeAlignBlockSize, MoeGate, MoeTopk, Problem, operator

EXPERTS, TOP_K, HIDDEN = 24, 3, 600
FIELDS: tuple[dict[str, Any], ...] = ({"block_size": 4}, {"block_size": 0})


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a library with a bucket of eight tokens, and one of 40 of some problems."""
    problems: list[Problem] = [
        *(MoeAlignBlockSize(40, EXPERTS, TOP_K, **fields) for fields in FIELDS),
        MoeAlignBlockSize(8, EXPERTS, TOP_K, 4),
        *(MoeGate(tokens, EXPERTS, HIDDEN) for tokens in (1, 8)),
        MoeTopk(8, EXPERTS, TOP_K),
        MoeTopk(8, EXPERTS, TOP_K, "sigmoid", True),
    ]
    path: Path = tmp_path_factory.mktemp("moe") / "kernels.so"
    wt.compile(problems, wt.Target.native(2)).export(path)
    return wt.load(path)


@pytest.mark.parametrize("tokens", [0, 1, 8, 9, 40, 100])
@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_align(kernels: Any, tokens: int, fields: dict[str, Any]) -> None:
    rng = np.random.default_rng(tokens)
    ids = rng.integers(-1, EXPERTS, (tokens, TOP_K)).astype(np.int32)
    found = kernels.moe_align_block_size(ids, **fields)
    problem = MoeAlignBlockSize(max(1, tokens), EXPERTS, TOP_K, **fields)
    expected = operator(problem.operator).reference(problem, {"topk_ids": ids})
    for got, want in zip(found, expected.values(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_outputs_of_a_wrong_size(kernels: Any) -> None:
    ids = np.zeros((5, TOP_K), np.int32)
    out = tuple(np.zeros(size, np.int32) for size in (40, 10, 1))
    with pytest.raises(ArgumentError, match="sorted_slots is 40; expected 60 with tokens 5"):
        kernels.moe_align_block_size(ids, block_size=4, out=out)


def test_a_token_is_routed_alike_in_every_bucket(kernels: Any) -> None:
    problem = MoeGate(21, EXPERTS, HIDDEN)
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(0))
    x, packed = inputs["hidden_states"], kernels.moe_gate.pack(inputs["gate_weight"])
    together = kernels.moe_gate(x, packed)
    tolerance = op.tolerance(problem, "router_logits")
    expected = op.reference(problem, inputs)["router_logits"]
    np.testing.assert_allclose(together, expected, tolerance.rtol, tolerance.atol)
    for tokens in (0, 1, 2, 8, 9):
        alone = kernels.moe_gate(x[:tokens], packed)
        np.testing.assert_array_equal(alone.view(np.int32), together[:tokens].view(np.int32))
    ids = kernels.moe_topk(together)[1]
    for token in range(21):
        row = kernels.moe_topk(kernels.moe_gate(x[token : token + 1], packed))[1]
        np.testing.assert_array_equal(row[0], ids[token])


@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_topk(kernels: Any, tokens: int) -> None:
    problem = MoeTopk(max(1, tokens), EXPERTS, TOP_K, "sigmoid", True)
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(tokens))
    logits, bias = inputs["gating_output"][:tokens], inputs["e_score_correction_bias"]
    weights, ids = kernels.moe_topk(logits, bias)
    expected = op.reference(problem, {"gating_output": logits, "e_score_correction_bias": bias})
    np.testing.assert_array_equal(ids, expected["topk_ids"])
    np.testing.assert_allclose(weights, expected["topk_weights"], rtol=2e-5)
    plain = kernels.moe_topk(logits)[1]
    assert plain.shape == (tokens, TOP_K)
    assert tokens < 30 or (plain != ids).any()


def test_torch_makes_outputs_of_the_right_size(kernels: Any) -> None:
    torch = pytest.importorskip("torch")
    ids = torch.arange(5 * TOP_K, dtype=torch.int32).reshape(5, TOP_K)
    kernels.register_torch()
    for found in (
        kernels.moe_align_block_size(ids, block_size=4),
        torch.ops.wattune.moe_align_block_size(ids, block_size=4)[:3],
    ):
        assert [tuple(t.shape) for t in found] == [(60,), (15,), (1,)]
        assert int(found[2]) == 60
