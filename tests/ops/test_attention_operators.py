"""References of the attention operators against torch's SDPA and flex_attention, and every field.

The oracles read the caches and build their masks in their own way, from the requests' positions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wattune.errors import ProblemError
from wattune.ops import (
    BlockSparseDecodeAttention,
    DecodeAttention,
    RectifyAttention,
    TokenSparseDecodeAttention,
    operator,
    problem_from_json,
)
from wattune.ops.attention import Attention

torch = pytest.importorskip("torch")

F32: dict[str, Any] = {"dtype": "float32", "return_lse": True}
SPARSE: dict[str, Any] = {"max_blocks": 6, "block_size": 8, **F32}
PROBLEMS: tuple[Attention, ...] = (
    DecodeAttention(4, 50, 8, 2, 16, **F32),
    DecodeAttention(4, 50, 7, 1, 32, value_dim=8, layout="NHD", query_tokens=3, **F32),
    DecodeAttention(4, 50, 4, 4, 16, page_size=8, window=5, query_tokens=4, sinks=True, **F32),
    DecodeAttention(4, 50, 4, 2, 16, page_size=7, layout="NHD", soft_cap=2.0, scale=0.7, **F32),
    DecodeAttention(4, 5, 4, 2, 16, query_tokens=8, window=90, sinks=True, soft_cap=3.0, **F32),
    BlockSparseDecodeAttention(5, 60, 6, 2, 16, **SPARSE),
    BlockSparseDecodeAttention(5, 60, 6, 2, 16, page_size=4, query_tokens=4, window=30, **SPARSE),
    BlockSparseDecodeAttention(
        5, 60, 6, 2, 16, layout="NHD", query_tokens=3, per_token=True, sinks=True, **SPARSE
    ),
    TokenSparseDecodeAttention(5, 60, 6, 2, 16, max_tokens=20, query_tokens=2, **F32),
    TokenSparseDecodeAttention(
        5, 60, 6, 2, 16, max_tokens=70, lists="head", page_size=16, soft_cap=4.0, **F32
    ),
    RectifyAttention(4, 50, 6, 2, 16, query_tokens=9, page_size=8, sinks=True, **F32),
    RectifyAttention(4, 12, 6, 2, 16, query_tokens=20, layout="NHD", value_dim=24, **F32),
)

Mask = NDArray[np.bool_]


def rows_of(problem: Attention, inputs: dict[str, Any], name: str, request: int) -> Any:
    """Return a request's keys or values [kv_heads, context, width], poison made finite."""
    cache = np.nan_to_num(inputs[name], nan=7.0, posinf=8.0, neginf=-9.0)
    found = np.zeros((problem.kv_heads, problem.context, cache.shape[-1]), np.float32)
    for position in range(problem.context):
        for head in range(problem.kv_heads):
            lead, at = request, position
            if problem.page_size:
                lead = inputs["page_table"][request, position // problem.page_size]
                at = position % problem.page_size
            index = (lead, head, at) if problem.layout == "HND" else (lead, at, head)
            found[head, position] = cache[index]
    return found


def listed(problem: Attention, inputs: dict[str, Any], request: int, head: int, token: int) -> Mask:
    """Return which positions the lists name for a query."""
    positions = np.arange(problem.context)
    if isinstance(problem, BlockSparseDecodeAttention):
        lists = inputs["block_indices"][request]
        row = lists[token, head] if problem.per_token else lists[head]
        return np.isin(positions // problem.block_size, row)
    if isinstance(problem, TokenSparseDecodeAttention):
        lists = inputs["token_indices"][request]
        return np.isin(positions, lists[head] if problem.lists == "head" else lists)
    return np.ones(problem.context, bool)


def visible(problem: Attention, inputs: dict[str, Any], request: int) -> Mask:
    """Return [query_heads, query_tokens, context]: what each query sees."""
    shape = (problem.query_heads, problem.query_tokens, problem.context)
    mask = np.zeros(shape, bool)
    for head, token, key in np.ndindex(shape):
        # The last query token is the request's last token.
        mine = int(inputs["seq_lens"][request]) - problem.query_tokens + token
        near = not problem.window or key > mine - problem.window
        mask[head, token, key] = key <= mine and near
    for head, token in np.ndindex(shape[:2]):
        kv_head = head // (problem.query_heads // problem.kv_heads)
        mask[head, token] &= listed(problem, inputs, request, kv_head, token)
    return mask


def tensors(problem: Attention, inputs: dict[str, Any], request: int) -> list[Any]:
    """Return q, k, v [1, heads, tokens, width] as torch has them."""
    q = torch.from_numpy(inputs["q"][request]).transpose(0, 1)
    k, v = (torch.from_numpy(rows_of(problem, inputs, n, request)) for n in ("k_cache", "v_cache"))
    return [t.double().unsqueeze(0) for t in (q, k, v)]


def with_new_rows(problem: Attention, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs whose caches hold the rows that rectification writes."""
    if not isinstance(problem, RectifyAttention):
        return inputs
    found = dict(inputs)
    for name in ("k", "v"):
        cache = found[f"{name}_cache"] = inputs[f"{name}_cache"].copy()
        for request, length in enumerate(inputs["seq_lens"]):
            for token in range(problem.query_tokens):
                at = int(length) - problem.query_tokens + token
                if at < 0:
                    continue
                lead = request
                if problem.page_size:
                    lead = inputs["page_table"][request, at // problem.page_size]
                    at %= problem.page_size
                for head in range(problem.kv_heads):
                    index = (lead, head, at) if problem.layout == "HND" else (lead, at, head)
                    cache[index] = inputs[name][request, token, head]
    return found


def flex(
    problem: Attention, inputs: dict[str, Any], request: int, mask: Mask
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return out and lse [query_tokens, query_heads, ...] by flex_attention, sinks after it."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    seen = torch.from_numpy(mask)

    def score_mod(score: Any, batch: Any, head: Any, q: Any, key: Any) -> Any:
        if problem.soft_cap:
            score = problem.soft_cap * torch.tanh(score / problem.soft_cap)
        return torch.where(seen[head, q, key], score, -float("inf"))

    q, k, v = tensors(problem, inputs, request)
    out, aux = flex_attention(
        q,
        k,
        v,
        score_mod=score_mod,
        scale=problem.scale,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )
    lse: Any = aux.lse
    if problem.sinks:
        sinks = torch.from_numpy(inputs["sinks"]).double()[None, :, None]
        out = out * torch.sigmoid(lse - sinks)[..., None]
    return out[0].transpose(0, 1).numpy(), lse[0].transpose(0, 1).numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_reference_equals_flex_attention(problem: Attention) -> None:
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(5))
    found = op.reference(problem, inputs)
    written = with_new_rows(problem, inputs)
    for request in range(problem.batch):
        mask = visible(problem, inputs, request)
        out, lse = flex(problem, written, request, mask)
        some = mask.any(-1).T
        np.testing.assert_allclose(found["out"][request][some], out[some], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["lse"][request][some], lse[some], rtol=1e-5, atol=1e-5)
        assert not found["out"][request][~some].any()
        assert (found["lse"][request][~some] == -np.inf).all()
    for name in set(found) - {"out", "lse"}:
        assert found[name].tobytes() == written[name].tobytes()


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if not p.soft_cap and not p.sinks], ids=str
)
def test_reference_equals_sdpa(problem: Attention) -> None:
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(6))
    found = op.reference(problem, inputs)["out"]
    written = with_new_rows(problem, inputs)
    for request in range(problem.batch):
        mask = visible(problem, inputs, request)
        q, k, v = tensors(problem, written, request)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, torch.from_numpy(mask)[None], scale=problem.scale, enable_gqa=True
        )
        some = mask.any(-1).T
        expected = out[0].transpose(0, 1).numpy()[some]
        np.testing.assert_allclose(found[request][some], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_inputs_hold_poison_that_does_not_leak(problem: Attention) -> None:
    op = operator(problem.operator)
    inputs = op.verification_inputs(problem, np.random.default_rng(7))
    assert all(np.isnan(inputs[name]).any() for name in ("k_cache", "v_cache"))
    found = op.reference(problem, inputs)
    assert np.isfinite(found["out"]).all()
    assert not np.isnan(found["lse"]).any()
    # Queries meet keys that matter: no weights that are all alike.
    assert found["lse"].max() > 0


def test_a_full_selection_is_dense() -> None:
    dense = DecodeAttention(2, 40, 4, 2, 16, query_tokens=3, **F32)
    inputs = operator("decode_attention").make_inputs(dense, np.random.default_rng(0))
    expected = operator("decode_attention").reference(dense, inputs)
    blocks = BlockSparseDecodeAttention(
        2, 40, 4, 2, 16, query_tokens=3, max_blocks=5, block_size=8, **F32
    )
    inputs["block_indices"] = np.broadcast_to(np.arange(5, dtype=np.int32), (2, 2, 5))
    inputs["token_indices"] = np.broadcast_to(np.arange(40, dtype=np.int32), (2, 40))
    tokens = TokenSparseDecodeAttention(2, 40, 4, 2, 16, query_tokens=3, max_tokens=40, **F32)
    for problem in (blocks, tokens):
        found = operator(problem.operator).reference(problem, inputs)
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_json_round_trip(problem: Attention) -> None:
    data = json.loads(json.dumps(problem.to_json()))
    assert problem_from_json(data) == problem
    assert problem_from_json(data).key == problem.key


def test_equal_problems_have_equal_keys() -> None:
    plain = DecodeAttention(1, 10, 4, 2, 64)
    assert DecodeAttention(1, 10, 4, 2, 64, value_dim=64, scale=0.125).key == plain.key
    assert DecodeAttention(1, 10, 4, 2, 64, soft_cap=0, sinks=0).key == plain.key  # type: ignore[arg-type]
    assert operator("decode_attention").parse_shape("1x10x4x2x64").key == plain.key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch is 0; allowed: an integer >= 1"),
        ({"query_heads": 9}, r"query_heads is 9; allowed: 1 to 16 times kv_heads \(2\)"),
        ({"query_heads": 34}, "query_heads is 34"),
        ({"head_dim": 64.0}, "head_dim is 64.0"),
        ({"query_tokens": 9}, "query_tokens is 9; allowed: an integer from 1 to 8"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, bfloat16, float16"),
        ({"layout": "DNH"}, "layout is 'DNH'; allowed: HND, NHD"),
        ({"page_size": -1}, "page_size"),
        ({"window": True}, "window is True"),
        ({"soft_cap": -1.0}, "soft_cap"),
        ({"scale": float("nan")}, "scale"),
        ({"sinks": 2}, "sinks"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {
        "batch": 1,
        "context": 10,
        "query_heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
    }
    with pytest.raises(ProblemError, match=message):
        DecodeAttention(**{**sizes, **fields})


def test_wrong_fields_of_sparse_attention() -> None:
    with pytest.raises(ProblemError, match="max_blocks is 0"):
        BlockSparseDecodeAttention(1, 10, 4, 2, 64, max_blocks=0)
    with pytest.raises(ProblemError, match="block_size is 0"):
        BlockSparseDecodeAttention(1, 10, 4, 2, 64, block_size=0)
    with pytest.raises(ProblemError, match="per_token"):
        BlockSparseDecodeAttention(1, 10, 4, 2, 64, per_token="yes")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="lists is 'token'"):
        TokenSparseDecodeAttention(1, 10, 4, 2, 64, lists="token")
    with pytest.raises(ProblemError, match="from 1 to 64"):
        RectifyAttention(1, 10, 4, 2, 64, query_tokens=65)
    with pytest.raises(ProblemError, match="no field 'blocks'"):
        problem_from_json({**BlockSparseDecodeAttention(1, 10, 4, 2, 64).to_json(), "blocks": 3})
    with pytest.raises(ProblemError, match="allowed: BATCHxCONTEXTxQUERY_HEADS"):
        operator("block_sparse_decode_attention").parse_shape("1x10")
