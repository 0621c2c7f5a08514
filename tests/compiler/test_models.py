"""Model configs: shapes, multiplicity, token buckets, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattune.compiler.models import (
    LayerProblem,
    Step,
    parse_buckets,
    problems_from_config,
    tokens_of,
)
from wattune.errors import ModelError, UnknownNameError, WattuneError
from wattune.ops import DecodeAttention, KVCacheAppend, RectifyAttention, SelectBlocks, TernaryGemm

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "bitnet-b1.58-2b.json"
MIMO = EXAMPLES / "mimo-v2-flash.json"
LINEARS = Step(attention="none")


def config(example: Path = EXAMPLE, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(example.read_text())
    data.update(changes)
    return {name: value for name, value in data.items() if value is not None}


def test_the_example_has_four_shapes_and_every_layer() -> None:
    layers = problems_from_config(EXAMPLE, step=LINEARS)
    shapes = {(p.problem.out_features, p.problem.in_features): p.multiplicity for p in layers}  # type: ignore[attr-defined]
    assert shapes == {(2560, 2560): 60, (640, 2560): 60, (6912, 2560): 60, (2560, 6912): 30}
    names = [name for p in layers for name in p.layer_names]
    assert len(names) == len(set(names)) == 7 * 30
    assert "model.layers.29.mlp.down_proj" in names
    assert {p.problem.to_json()["dtype"] for p in layers} == {"bfloat16"}


def test_buckets_multiply_problems_and_weights_sum_to_one() -> None:
    layers = problems_from_config(EXAMPLE, {32: 1, 1: 3}, LINEARS)
    assert [(p.problem.sizes["tokens"], p.weight) for p in layers] == [(1, 0.75)] * 4 + [
        (32, 0.25)
    ] * 4


def test_head_dim_of_its_own() -> None:
    layers = problems_from_config(config(head_dim=64), step=LINEARS)
    assert {(p.problem.out_features, p.problem.in_features) for p in layers} >= {  # type: ignore[attr-defined]
        (20 * 64, 2560),
        (2560, 20 * 64),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ("architectures", "GPT2", "BitNetForCausalLM")),
        ({"architectures": None}, ("architectures", "missing")),
        ({"hidden_size": None}, ("hidden_size", "missing")),
        ({"intermediate_size": "big"}, ("intermediate_size", "'big'", "integer")),
        ({"num_hidden_layers": True}, ("num_hidden_layers", "True")),
        ({"num_attention_heads": 7}, ("num_attention_heads", "7", "2560")),
        ({"torch_dtype": "int4"}, ("torch_dtype", "int4", "bfloat16")),
        ({"quantization_config": None}, ("quantization_config", "missing")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quant_method", "gptq", "bitnet")),
    ],
)
def test_refused_configs_name_the_field(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as error:
        problems_from_config(config(**changes))
    for word in words:
        assert word in str(error.value)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="cannot be read"):
        problems_from_config(path)
    path.write_text('{"hidden_size": 25')
    with pytest.raises(ModelError, match="not JSON"):
        problems_from_config(path)
    path.write_text("[1, 2]")
    with pytest.raises(ModelError, match="JSON object"):
        problems_from_config(path)


def test_buckets() -> None:
    assert parse_buckets("1:0.9,32:0.1") == pytest.approx({1: 0.9, 32: 0.1})
    assert parse_buckets("128,1,8") == {1: 1.0, 8: 0.0, 128: 0.0}
    assert parse_buckets("8:3,1:1") == {1: 0.25, 8: 0.75}


@pytest.mark.parametrize(
    "text", ["", "x", "1:a", "0", "-1", "1:-1", "1,1", "1:0.5,8", "1:0", "1:nan", "1:inf"]
)
def test_buckets_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"context.*allowed"):
        parse_buckets(text, "context")


# --- attention -----------------------------------------------------------------------------------


def attention(config: Any, **step: Any) -> list[LayerProblem]:
    found = problems_from_config(config, step=Step(**step))
    return [layer for layer in found if not isinstance(layer.problem, TernaryGemm)]


@pytest.mark.parametrize(("name", "layers"), [("llama-3.1-8b", 32), ("qwen3-8b", 36)])
def test_llama_and_qwen(name: str, layers: int) -> None:
    attend, append = problems_from_config(EXAMPLES / f"{name}.json")
    assert attend.problem == DecodeAttention(1, 32768, 32, 8, 128)
    assert append.problem == KVCacheAppend(1, 32768, 8, 128)
    assert attend.multiplicity == append.multiplicity == layers
    assert attend.layer_names[-1] == f"model.layers.{layers - 1}.self_attn"
    assert attend.problem.shared_data() == append.problem.shared_data()


def test_mimo_v2_flash_verifies_four_tokens() -> None:
    layers = problems_from_config(MIMO, step=Step(query_tokens=4, page_size=64))
    fields: dict[str, Any] = {"value_dim": 128, "query_tokens": 4, "page_size": 64}
    wide = DecodeAttention(1, 32768, 64, 4, 192, **fields)
    narrow = DecodeAttention(1, 32768, 64, 8, 192, window=128, sinks=True, **fields)
    appends = [KVCacheAppend(1, 32768, heads, 192, **fields) for heads in (4, 8)]
    found = {layer.problem: layer.multiplicity for layer in layers}
    assert found == {wide: 9, appends[0]: 9, narrow: 39, appends[1]: 39}
    assert {layer.tokens for layer in layers} == {4}
    names = next(layer.layer_names for layer in layers if layer.problem == wide)
    assert names[:3] == tuple(f"model.layers.{i}.self_attn" for i in (0, 5, 11))


def test_mimo_as_transformers_writes_it() -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    own = {name: None for name in config(MIMO) if name.startswith(("swa_", "add_", "hybrid_"))}
    changes = {"layer_types": types, "sliding_window": 128, "sliding_window_size": None}
    sparse = {"moe_layer_freq": None, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    read = config(MIMO, **own, **changes, **sparse, num_hidden_layers=3)
    theirs = {layer.problem: layer.multiplicity for layer in attention(read)}
    ours = {layer.problem for layer in attention(MIMO)}
    assert theirs.keys() == ours
    assert sorted(theirs.values()) == [1, 1, 2, 2]


def test_bitnet_has_attention_beside_its_ternary_layers() -> None:
    attend, append = attention(EXAMPLE)
    # Made for 4096 tokens.
    assert attend.problem == DecodeAttention(1, 4096, 20, 5, 128)
    assert (append.problem, append.multiplicity) == (KVCacheAppend(1, 4096, 5, 128), 30)
    longer = attention(EXAMPLE, context={9000: 1.0})
    assert longer[0].problem.sizes["context"] == 9000


def test_layers_of_both_kinds_append_alike() -> None:
    changes = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 30}
    layers = attention(config(EXAMPLES / "qwen3-8b.json", **changes))
    found = {(type(p.problem), p.problem.to_json().get("window")): p.multiplicity for p in layers}
    expected = {(DecodeAttention, 0): 30, (DecodeAttention, 512): 6, (KVCacheAppend, None): 36}
    assert found == expected


def test_buckets_of_batches_and_contexts() -> None:
    step = Step({1: 3.0, 8: 1.0}, {512: 0.5, 4096: 0.5}, query_tokens=2)
    layers = problems_from_config(EXAMPLE, step=step)
    attend = [layer for layer in layers if isinstance(layer.problem, DecodeAttention)]
    found = {tuple(layer.problem.sizes.values()): (layer.weight, layer.tokens) for layer in attend}
    assert found == {
        (1, 512): (0.375, 2),
        (1, 4096): (0.375, 2),
        (8, 512): (0.125, 16),
        (8, 4096): (0.125, 16),
    }
    linears = [layer for layer in layers if isinstance(layer.problem, TernaryGemm)]
    assert {(p.problem.sizes["tokens"], p.weight) for p in linears} == {(2, 0.75), (16, 0.25)}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("dense", ["decode_attention", "kv_cache_append"]),
        (
            "block_sparse",
            [
                "block_sparse_decode_attention",
                "block_minmax",
                "block_score",
                "select_blocks",
                "kv_cache_append",
            ],
        ),
        ("token_sparse", ["token_sparse_decode_attention", "kv_cache_append"]),
        ("int4", ["quantized_decode_attention", "quantized_kv_cache_append"]),
        ("none", []),
    ],
)
def test_kinds_of_attention(kind: str, names: list[str]) -> None:
    layers = attention(MIMO, attention=kind, keep=0.25)
    wide = [layer.problem for layer in layers if layer.multiplicity == 9]
    assert [problem.operator for problem in wide] == names
    narrow = [layer.problem.operator for layer in layers if layer.multiplicity == 39]
    # A window has nothing to leave out.
    assert narrow == (["decode_attention", "kv_cache_append"] if names else [])
    if kind == "token_sparse":
        assert wide[0].sizes["max_tokens"] == 8192
    if kind == "block_sparse":
        assert {p.to_json().get("max_blocks", 128) for p in wide} == {128}
        assert {p.to_json().get("block_size", 64) for p in wide} == {64}
        assert [p.fraction for p in wide if isinstance(p, SelectBlocks)] == [0.25]
    if kind == "int4":
        assert {problem.to_json()["format"] for problem in wide} == {"int4"}
        assert wide[0].sizes["max_blocks"] == 0


def test_selected_lists_are_as_long_for_every_context() -> None:
    step = Step(context={640: 0.5, 6400: 0.5}, query_tokens=4, attention="block_sparse")
    layers = problems_from_config(EXAMPLES / "llama-3.1-8b.json", step=step)
    select = [layer for layer in layers if isinstance(layer.problem, SelectBlocks)]
    assert [layer.problem.to_json()["max_blocks"] for layer in select] == [10, 10]
    # One list serves all four tokens of a step.
    assert {(layer.problem.to_json()["query_tokens"], layer.tokens) for layer in select} == {(0, 4)}
    assert len({layer.problem.static_key for layer in layers}) == len(layers) / 2
    attend = [p.problem.sizes for p in layers if "max_blocks" in p.problem.runtime]
    assert [sizes["max_blocks"] for sizes in attend] == [1, 10]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hybrid_layer_pattern": [0, 1]}, ("hybrid_layer_pattern", "48")),
        ({"hybrid_layer_pattern": [2] * 48}, ("hybrid_layer_pattern", "0, 1")),
        ({"hybrid_layer_pattern": None}, ("hybrid_layer_pattern", "missing")),
        ({"sliding_window_size": None}, ("sliding_window", "missing")),
        ({"add_swa_attention_sink_bias": "yes"}, ("add_swa_attention_sink_bias", "true, false")),
        ({"swa_num_key_value_heads": 7}, ("query_heads", "7")),
    ],
)
def test_refused_attention_names_the_field(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(WattuneError) as error:
        problems_from_config(config(MIMO, **changes))
    for word in words:
        assert word in str(error.value)


def test_refused_steps() -> None:
    with pytest.raises(UnknownNameError, match="block_sparse"):
        problems_from_config(EXAMPLE, step=Step(attention="sparse"))
    with pytest.raises(ModelError, match="keep is 0"):
        Step(keep=0)
    with pytest.raises(ModelError, match="block size"):
        Step(block_size=0)


def test_tokens_of_problems() -> None:
    assert tokens_of(TernaryGemm(8, 64, 64)) == 8
    assert tokens_of(DecodeAttention(3, 512, 8, 8, 64, query_tokens=4)) == 12
    assert tokens_of(RectifyAttention(2, 512, 8, 8, 64)) == 64
