"""Import of the Hugging Face BitNet form: written here as its packer writes it, read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tests.compiler.checkpoints import Tensors, config, hf_pack, tensors

from wattune.compiler.checkpoint import read_layers, unpack_rows
from wattune.errors import ModelError


@pytest.mark.parametrize(
    ("quantization", "scale"),
    [
        ({"linear_class": "autobitlinear", "quantization_mode": "offline"}, 2.5),
        ({"linear_class": "bitlinear"}, 0.4),
        ({}, 0.4),
    ],
)
def test_weights_and_scale_come_back(
    tmp_path: Path, quantization: dict[str, str], scale: float
) -> None:
    stored, weights = tensors(np.random.default_rng(0))
    path = tmp_path / "model.safetensors"
    save_file(stored, path)
    layers = {layer.name: layer for layer in read_layers(path, config(**quantization))}
    assert layers.keys() == weights.keys()
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer.weights, weights[name])
        assert layer.scale == pytest.approx(scale)


@pytest.mark.parametrize("out", [1, 3, 4, 5, 37])
def test_any_number_of_rows(out: int) -> None:
    weights = np.random.default_rng(out).integers(-1, 2, (out, 6), dtype=np.int8)
    np.testing.assert_array_equal(unpack_rows(hf_pack(weights), out), weights)


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda stored: stored.__delitem__(name)


def put(name: str, value: NDArray[Any]) -> Callable[[Tensors], None]:
    return lambda stored: stored.update({name: value})


LAYER = "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop(f"{LAYER}.weight_scale"), ("gate_proj.weight_scale", "missing")),
        (drop(f"{LAYER}.weight"), ("gate_proj.weight", "missing")),
        (put(f"{LAYER}.weight", np.zeros((10, 16), np.int8)), ("dtype I8", "U8")),
        (put(f"{LAYER}.weight", np.zeros((37, 16), np.uint8)), ("[37, 16]", "[10, 16]")),
        (put(f"{LAYER}.weight", np.full((10, 16), 3, np.uint8)), ("code 3", "gate_proj")),
        (put(f"{LAYER}.weight_scale", np.zeros(1, np.int32)), ("dtype I32", "BF16")),
        (put(f"{LAYER}.weight_scale", np.ones(37, np.float32)), ("[37]", "[1]")),
        (put(f"{LAYER}.weight_scale", np.zeros(1, np.float32)), ("is 0.0", "finite")),
    ],
)
def test_damaged_layers_are_refused(
    tmp_path: Path, damage: Callable[[Tensors], None], words: tuple[str, ...]
) -> None:
    stored, _ = tensors(np.random.default_rng(0))
    damage(stored)
    path = tmp_path / "model.safetensors"
    save_file(stored, path)
    with pytest.raises(ModelError) as error:
        list(read_layers(path, config()))
    for word in words:
        assert word in str(error.value)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    stored, _ = tensors(np.random.default_rng(0))
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        list(read_layers(path, config()))
    save_file(stored, path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            list(read_layers(path, config()))
    with pytest.raises(ModelError, match=r"quantization_mode.*offline"):
        list(read_layers(path, config(quantization_mode="online")))
