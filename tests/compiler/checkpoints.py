"""Small checkpoints in the Hugging Face BitNet form, packed as transformers packs them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
SHAPES = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (37, 16),  # not a multiple of four
    "mlp.up_proj": (37, 16),
    "mlp.down_proj": (16, 37),
}


def config(**quantization: str) -> dict[str, Any]:
    return {
        "architectures": ["BitNetForCausalLM"],
        "torch_dtype": "float32",
        "hidden_size": 16,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "quantization_config": {"quant_method": "bitnet", **quantization},
    }


def hf_pack(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack as transformers does, written from its definition with plain loops."""
    out, inside = weights.shape
    rows = (out + 3) // 4
    packed = np.zeros((rows, inside), np.uint8)
    for row in range(out):
        for column in range(inside):
            packed[row % rows, column] |= (int(weights[row, column]) + 1) << 2 * (row // rows)
    return packed


def tensors(rng: np.random.Generator) -> tuple[Tensors, dict[str, NDArray[np.int8]]]:
    stored: Tensors = {"model.norm.weight": np.ones(16, np.float32)}
    weights = {}
    for block in range(2):
        for name, shape in SHAPES.items():
            layer = f"model.layers.{block}.{name}"
            weights[layer] = rng.integers(-1, 2, shape, dtype=np.int8)
            stored[f"{layer}.weight"] = hf_pack(weights[layer])
            stored[f"{layer}.weight_scale"] = np.array([2.5], ml_dtypes.bfloat16)
    return stored, weights
