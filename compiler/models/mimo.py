"""MiMo-V2-Flash: global attention, and five sliding-window layers after each, with sinks.

Two forms of its config exist: the checkpoint's own (``hybrid_layer_pattern``, ``swa_...``) and the
one that transformers writes (``layer_types``).
"""

from __future__ import annotations

from dataclasses import replace

from wattune.compiler.models.config import Config
from wattune.compiler.models.layers import AttentionShape, Model
from wattune.compiler.models.llama import LAYER_TYPES, attention_name, most_context
from wattune.compiler.models.moe import deepseek_moe


def mimo_v2_flash(config: Config) -> Model:
    """Read MiMo-V2-Flash; the drafting (MTP) layers are not counted."""
    blocks = config.size("num_hidden_layers")
    if config.has("layer_types"):
        types = config.items("layer_types", LAYER_TYPES, blocks)
        pattern = [int(kind == "sliding_attention") for kind in types]
    else:
        pattern = config.items("hybrid_layer_pattern", (0, 1), blocks)
    shapes = (_global(config), _sliding(config) if any(pattern) else None)
    attention = {
        attention_name(block): shape
        for block, sliding in enumerate(pattern)
        if (shape := shapes[sliding]) is not None
    }
    # Its gate is kept in float32.
    layers = deepseek_moe(config)
    moe = {name: replace(shape, gate_dtype="float32") for name, shape in layers.items()}
    return Model(config.dtype(), attention, most_context=most_context(config), moe=moe)


def _global(config: Config) -> AttentionShape:
    width = config.size("head_dim")
    return AttentionShape(
        config.size("num_attention_heads"),
        config.size("num_key_value_heads"),
        width,
        config.size("v_head_dim", width),
        sinks=config.flag("add_full_attention_sink_bias"),
    )


def _sliding(config: Config) -> AttentionShape:
    """Return the sliding layers' shape; what the config leaves out is as in transformers."""
    wide = _global(config)
    width = config.size("swa_head_dim", wide.head_dim)
    # As the paper has it, the window counts the query's own key. transformers 5.23 reads the
    # checkpoint's sliding_window_size as the keys before it, and writes sliding_window with one
    # more.
    named = "sliding_window_size" if config.has("sliding_window_size") else "sliding_window"
    return AttentionShape(
        config.size("swa_num_attention_heads", wide.query_heads),
        config.size("swa_num_key_value_heads", 2 * wide.kv_heads),
        width,
        config.size("swa_v_head_dim", wide.value_dim),
        window=config.size(named),
        sinks=config.flag("add_swa_attention_sink_bias", True),
    )
