"""Model configs: shapes, multiplicity, token buckets, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattune.compiler.models import parse_tokens, problems_from_config
from wattune.errors import ModelError

EXAMPLE = Path(__file__).parents[2] / "examples" / "bitnet-b1.58-2b.json"


def config(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(EXAMPLE.read_text())
    data.update(changes)
    return {name: value for name, value in data.items() if value is not None}


def test_the_example_has_four_shapes_and_every_layer() -> None:
    layers = problems_from_config(EXAMPLE)
    shapes = {(p.problem.out_features, p.problem.in_features): p.multiplicity for p in layers}  # type: ignore[attr-defined]
    assert shapes == {(2560, 2560): 60, (640, 2560): 60, (6912, 2560): 60, (2560, 6912): 30}
    names = [name for p in layers for name in p.layer_names]
    assert len(names) == len(set(names)) == 7 * 30
    assert "model.layers.29.mlp.down_proj" in names
    assert {p.problem.to_json()["dtype"] for p in layers} == {"bfloat16"}


def test_buckets_multiply_problems_and_weights_sum_to_one() -> None:
    layers = problems_from_config(EXAMPLE, {32: 1, 1: 3})
    assert [(p.problem.sizes["tokens"], p.weight) for p in layers] == [(1, 0.75)] * 4 + [
        (32, 0.25)
    ] * 4


def test_head_dim_of_its_own() -> None:
    layers = problems_from_config(config(head_dim=64))
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


def test_tokens() -> None:
    assert parse_tokens("1:0.9,32:0.1") == pytest.approx({1: 0.9, 32: 0.1})
    assert parse_tokens("128,1,8") == {1: 1.0, 8: 0.0, 128: 0.0}
    assert parse_tokens("8:3,1:1") == {1: 0.25, 8: 0.75}


@pytest.mark.parametrize(
    "text", ["", "x", "1:a", "0", "-1", "1:-1", "1,1", "1:0.5,8", "1:0", "1:nan", "1:inf"]
)
def test_tokens_refused(text: str) -> None:
    with pytest.raises(ModelError, match="allowed"):
        parse_tokens(text)
