"""Llama, and the models whose attention is described as Llama's is: Qwen3, BitNet."""

from __future__ import annotations

from dataclasses import replace

from wattune.compiler.models.config import Config
from wattune.compiler.models.layers import AttentionShape, Linear, Model
from wattune.compiler.models.moe import qwen3_moe

LAYER_TYPES = ("full_attention", "sliding_attention")


def llama(config: Config) -> Model:
    """Read Llama: grouped query attention in every block; ternary layers with BitNet's weights."""
    ternary: tuple[Linear, ...] = ()
    if config.has("quantization_config"):
        method = config.section("quantization_config").fields.get("quant_method")
        ternary = tuple(bitnet_linears(config)) if method == "bitnet" else ()
    return _model(config, [0] * config.size("num_hidden_layers"), ternary)


def bitnet(config: Config) -> Model:
    """Read BitNet b1.58."""
    return _model(config, [0] * config.size("num_hidden_layers"), tuple(bitnet_linears(config)))


def qwen3(config: Config) -> Model:
    """Read Qwen3 or Qwen3 MoE: as Llama, with a sliding window in some blocks where it is on."""
    return replace(_model(config, _qwen3_windows(config)), moe=qwen3_moe(config))


def _qwen3_windows(config: Config) -> list[int]:
    blocks = config.size("num_hidden_layers")
    if not config.flag("use_sliding_window"):
        return [0] * blocks
    window = config.size("sliding_window")
    if config.has("layer_types"):
        types = config.items("layer_types", LAYER_TYPES, blocks)
        return [window * (kind == "sliding_attention") for kind in types]
    first = config.size("max_window_layers", blocks)
    return [window * (block >= first) for block in range(blocks)]


def _model(config: Config, windows: list[int], ternary: tuple[Linear, ...] = ()) -> Model:
    heads, kv_heads, width = _heads(config)
    attention = {
        attention_name(block): AttentionShape(heads, kv_heads, width, width, window)
        for block, window in enumerate(windows)
    }
    return Model(config.dtype(), attention, ternary, most_context(config))


def attention_name(block: int) -> str:
    """Return the module name of a block's attention."""
    return f"model.layers.{block}.self_attn"


def most_context(config: Config) -> int:
    """Return the longest context that the model was made for; 0 where the config does not say."""
    name = "max_position_embeddings"
    return config.size(name) if config.has(name) else 0


def _heads(config: Config) -> tuple[int, int, int]:
    """Return query heads, KV heads and the width of a head."""
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if config.has("head_dim"):
        return heads, kv_heads, config.size("head_dim")
    hidden = config.size("hidden_size")
    if hidden % heads:
        raise config.error("num_attention_heads", heads, f"a divisor of hidden_size ({hidden})")
    return heads, kv_heads, hidden // heads


def bitnet_linears(config: Config) -> list[Linear]:
    """Return the ternary layers of a BitNet b1.58 transformer, block by block.

    The embedding and the output head are not ternary and are left out.
    """
    config.section("quantization_config").choice("quant_method", ("bitnet",))
    hidden, inter = config.size("hidden_size"), config.size("intermediate_size")
    heads, kv_heads, width = _heads(config)
    shapes = {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (kv_heads * width, hidden),
        "self_attn.v_proj": (kv_heads * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    return [
        Linear(f"model.layers.{block}.{name}", *shape)
        for block in range(config.size("num_hidden_layers"))
        for name, shape in shapes.items()
    ]
