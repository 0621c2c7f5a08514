"""Quantised caches: appending token by token, quantising at once, attention, wrong fields."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from wattune.errors import ProblemError
from wattune.ops import operator, problem_from_json
from wattune.ops.kv_cache_quantize import KVCacheQuantize
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.ops.quantized_kv_cache import ARRAYS, QuantizedKVCache, empty_like
from wattune.ops.quantized_kv_cache_append import QuantizedKVCacheAppend

HEADS, DIM, BLOCK, GROUP = 2, 64, 64, 32
CODES = ("k_codes", "k_params", "v_codes", "v_params")
KINDS = [("int8", "channel"), ("int4", "token"), ("int2", "channel")]


def fields_of(format: str, key_groups: str) -> dict[str, Any]:
    return {
        "format": format,
        "key_groups": key_groups,
        "group_size": GROUP,
        "block_tokens": BLOCK,
        "dtype": "float32",
    }


def prompt(length: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shape = (1, length, HEADS, DIM)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name in ("k", "v")}


def quantized(rows: dict[str, Any], length: int, most: int, kind: tuple[str, str]) -> Any:
    """Return the cache of the first ``length`` tokens, quantised at once."""
    problem = KVCacheQuantize(1, most, HEADS, DIM, **fields_of(*kind))
    state = empty_like(problem.quantized, 1, most)
    inputs = {**rows, **state, "seq_lens": np.array([length], np.int32)}
    return operator(problem.operator).reference(problem, inputs)


def appended(rows: dict[str, Any], steps: list[int], kind: tuple[str, str]) -> Iterator[Any]:
    """Yield length and cache after each step of so many tokens."""
    most = rows["k"].shape[1]
    length = 0
    state: dict[str, Any] = {}
    for step in steps:
        problem = QuantizedKVCacheAppend(1, most, HEADS, DIM, **fields_of(*kind), query_tokens=step)
        state = state or empty_like(problem.quantized, 1, most)
        new = {name: array[:, length : length + step] for name, array in rows.items()}
        length += step
        inputs = {**new, **state, "seq_lens": np.array([length], np.int32)}
        state = operator(problem.operator).reference(problem, inputs)
        yield length, state


def assert_same_cache(got: Any, want: Any, length: int) -> None:
    """Compare what is in use: packed blocks, and the rows of the residual."""
    packed, rest = divmod(length, BLOCK)
    for name in ARRAYS:
        used = rest if name.endswith("residual") else packed
        np.testing.assert_array_equal(got[name][:, :, :used], want[name][:, :, :used], name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("each", [1, 2, 3, 4, 5])
def test_appending_equals_quantising_at_once(kind: tuple[str, str], each: int) -> None:
    most = 2 * BLOCK + 3
    rows = prompt(most)
    steps = [each] * (most // each)
    seen = set()
    for length, state in appended(rows, steps, kind):
        rest = length % BLOCK
        # Around both boundaries every length, else every eighth: full, empty, one token.
        if rest in (BLOCK - 1, 0, 1, 2, 3, 4) or length % 8 == 0:
            assert_same_cache(state, quantized(rows, length, most, kind), length)
            seen.add((length // BLOCK, rest))
    assert {blocks for blocks, _ in seen} == {0, 1, 2}
    if each == 1:
        assert {(1, BLOCK - 1), (1, 0), (1, 1), (2, 0), (2, 1)} <= seen


def test_steps_may_change_and_be_a_whole_block() -> None:
    most = 3 * BLOCK
    rows = prompt(most, 1)
    steps = [BLOCK - 1, 2, 1, BLOCK, 5, BLOCK - 7]
    for length, state in appended(rows, steps, KINDS[0]):
        assert_same_cache(state, quantized(rows, length, most, KINDS[0]), length)
    assert length == 3 * BLOCK


@pytest.mark.parametrize("each", [1, 3])
def test_old_tokens_are_quantised_whatever_the_call(each: int) -> None:
    """Short calls must fill blocks too, and a packed block is never touched again.

    Caches that quantise only long calls keep every decoded token in full precision.
    """
    kind, most = KINDS[0], 2 * BLOCK + each
    rows = prompt(most, 2)
    before: dict[str, Any] = {}
    packs = 0
    for length, state in appended(rows, [each] * (most // each), kind):
        packed = length // BLOCK
        for name in CODES:
            if before:
                old = slice(0, (length - each) // BLOCK)
                np.testing.assert_array_equal(state[name][:, :, old], before[name][:, :, old])
            # Nothing is written ahead of its time.
            assert not state[name][:, :, packed:].any()
        if packed and packed != packs:
            packs = packed
            cache = KVCacheQuantize(1, most, HEADS, DIM, **fields_of(*kind)).quantized
            got = cache.dequantize("k", state["k_codes"][0], state["k_params"][0])
            want = np.swapaxes(rows["k"][0, : packed * BLOCK], 0, 1)
            error = got[:, :packed].reshape(want.shape) - want
            assert 0 < np.abs(error).max() < 0.05
        before = state
    assert packs == 2


def test_a_request_that_is_new_or_empty() -> None:
    kind = KINDS[0]
    problem = QuantizedKVCacheAppend(3, BLOCK, HEADS, DIM, **fields_of(*kind), query_tokens=4)
    rng = np.random.default_rng(4)
    inputs = operator(problem.operator).make_inputs(problem, rng)
    inputs["seq_lens"] = np.array([0, 2, 4], np.int32)
    found = operator(problem.operator).reference(problem, inputs)
    for name in CODES:
        np.testing.assert_array_equal(found[name], inputs[name])
    for which in ("k", "v"):
        residual, rows = found[f"{which}_residual"], np.swapaxes(inputs[which], 1, 2)
        np.testing.assert_array_equal(residual[0], inputs[f"{which}_residual"][0])
        # Of a request of two tokens the last two rows are the new ones.
        np.testing.assert_array_equal(residual[1, :, :2], rows[1, :, 2:])
        np.testing.assert_array_equal(residual[2, :, :4], rows[2])
        np.testing.assert_array_equal(residual[1, :, 2:], inputs[f"{which}_residual"][1, :, 2:])


def plain_rows(problem: Any, inputs: Any, which: str) -> Any:
    """Dequantise by the words of the documentation, byte by byte, with torch."""
    cache: QuantizedKVCache = problem.quantized
    width, bits, block = cache.width(which), cache.bits, cache.block_tokens
    fields = 8 // bits
    codes = torch.from_numpy(inputs[f"{which}_codes"]).long()
    params = torch.from_numpy(inputs[f"{which}_params"]).double()
    requests, heads, blocks, _ = codes.shape
    token, channel = torch.meshgrid(torch.arange(block), torch.arange(width), indexing="ij")
    if which == "k":
        quads = width // (4 * fields)
        field, rest = channel // (width // fields), channel % (width // fields)
        byte = ((token // 16 * quads + rest // 4) * 16 + token % 16) * 4 + rest % 4
    else:
        field = token // 4 % fields
        byte = (token // (4 * fields) * width + channel) * 4 + token % 4
    plain = codes[..., byte] >> (bits * field) & (2**bits - 1)
    if cache.per_channel(which):
        spread = params[:, :, :, token // cache.group_size, :, channel]
    else:
        spread = params[:, :, :, channel // cache.group_size, :, token]
    # Indices apart from each other come first in torch: [token, channel, request, head, block, 2].
    spread = spread.permute(2, 3, 4, 0, 1, 5)
    rows = plain.double() * spread[..., 0] + spread[..., 1]
    packed = rows.reshape(requests, heads, blocks * block, width)
    residual = torch.from_numpy(inputs[f"{which}_residual"].astype(np.float64))
    found = []
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        cut = length // block * block
        found.append(torch.cat([packed[request, :, :cut], residual[request, :, : length - cut]], 1))
    return found


@pytest.mark.parametrize(("format", "key_groups"), [*KINDS, ("int4", "channel")])
@pytest.mark.parametrize("queries", [1, 3])
def test_attention_is_that_of_the_dequantised_rows(
    format: str, key_groups: str, queries: int
) -> None:
    problem = QuantizedDecodeAttention(
        3, 200, 4, 2, 64, **fields_of(format, key_groups), query_tokens=queries
    )
    rng = np.random.default_rng(5)
    inputs = operator(problem.operator).make_inputs(problem, rng)
    inputs["seq_lens"] = np.array([200, 2 * BLOCK, 37], np.int32)
    outputs = operator(problem.operator).reference(problem, inputs)
    name = next(name for name in outputs if outputs[name].ndim == 4)
    keys, values = (plain_rows(problem, inputs, which) for which in ("k", "v"))
    for request, length in enumerate(inputs["seq_lens"].tolist()):
        q = torch.from_numpy(inputs["q"][request].astype(np.float64)).transpose(0, 1)
        position = torch.arange(length - queries, length)[:, None]
        seen = torch.arange(length)[None] <= position
        want = torch.nn.functional.scaled_dot_product_attention(
            q[None],
            keys[request][None],
            values[request][None],
            attn_mask=seen,
            scale=problem.scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
        np.testing.assert_allclose(outputs[name][request], want.numpy(), rtol=2e-6, atol=2e-6)


def test_listed_blocks_may_cross_into_the_residual() -> None:
    problem = QuantizedDecodeAttention(
        1, 200, 2, 2, 64, **fields_of("int8", "channel"), block_size=16, max_blocks=4
    )
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(6))
    inputs["block_indices"] = np.array([[[3, -1, 12, 0], [-1, -1, 5, -1]]], np.int32)
    outputs = operator(problem.operator).reference(problem, inputs)
    name = next(name for name in outputs if outputs[name].ndim == 4)
    keys, values = (plain_rows(problem, inputs, which)[0] for which in ("k", "v"))
    q = torch.from_numpy(inputs["q"][0, 0].astype(np.float64))
    # Block 12 is half beyond the request's 200 tokens.
    listed = ([*range(16), *range(48, 64), *range(192, 200)], [*range(80, 96)])
    for head, tokens in enumerate(listed):
        scores = keys[head, tokens] @ q[head] * problem.scale
        want = torch.softmax(scores, 0) @ values[head, tokens]
        np.testing.assert_allclose(outputs[name][0, 0, head], want.numpy(), rtol=2e-6, atol=2e-6)


WRONG = [
    ({"format": "int3"}, "format"),
    ({"key_groups": "row"}, "key_groups"),
    ({"group_size": 16}, "group_size"),
    ({"block_tokens": 16}, "block_tokens"),
    ({"block_tokens": 96, "group_size": 64}, "block_tokens"),
    ({"head_dim": 72}, "head_dim"),
    ({"value_dim": 80}, "value_dim"),
    ({"head_dim": 80, "value_dim": 64, "key_groups": "token"}, "head_dim"),
    ({"dtype": "int8"}, "dtype"),
    ({"batch": 0}, "batch"),
    ({"kv_heads": True}, "kv_heads"),
]


@pytest.mark.parametrize(("change", "name"), WRONG)
@pytest.mark.parametrize("kind", [KVCacheQuantize, QuantizedKVCacheAppend])
def test_wrong_fields(kind: type[Any], change: dict[str, Any], name: str) -> None:
    plain = dataclasses.asdict(kind(1, 256, 2, 64))
    with pytest.raises(ProblemError, match=f"{kind.operator}: {name} is"):
        kind(**{**plain, **change})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"format": "fp4"}, "format"),
        ({"group_size": 48}, "group_size"),
        ({"layout": "NHD"}, "layout"),
        ({"page_size": 64}, "page_size"),
        ({"max_blocks": 4}, "max_blocks"),
        ({"block_size": 64, "max_blocks": 0}, "max_blocks"),
    ],
)
def test_wrong_fields_of_attention(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ProblemError, match=f"quantized_decode_attention: {name} is"):
        QuantizedDecodeAttention(1, 256, 4, 2, 64, **change)


@pytest.mark.parametrize("tokens", [0, 65])
def test_wrong_query_tokens(tokens: int) -> None:
    with pytest.raises(ProblemError, match="query_tokens is"):
        QuantizedKVCacheAppend(1, 256, 2, 64, block_tokens=64, query_tokens=tokens)


def test_problems_survive_json_and_print() -> None:
    for problem in (
        KVCacheQuantize(1, 256, 2, 64, format="int2"),
        QuantizedKVCacheAppend(2, 300, 2, 192, value_dim=128, query_tokens=3),
        QuantizedDecodeAttention(1, 256, 4, 2, 64, key_groups="token"),
    ):
        assert problem_from_json(json.loads(problem.key)) == problem
        assert problem.operator in str(problem)


def test_the_three_operators_share_a_cache() -> None:
    fields = fields_of("int4", "token")
    names = {
        KVCacheQuantize(1, 256, HEADS, DIM, **fields).shared_data(),
        QuantizedKVCacheAppend(4, 512, HEADS, DIM, **fields).shared_data(),
        QuantizedDecodeAttention(1, 256, 8, HEADS, DIM, **fields).shared_data(),
    }
    assert len(names) == 1
    other = KVCacheQuantize(1, 256, HEADS, DIM, **{**fields, "format": "int8"})
    assert other.shared_data() not in names
