"""Import of BitNet b1.58 checkpoints in the Hugging Face form (safetensors).

A linear layer is ``<name>.weight``, uint8 [ceil(out / 4), in]: bits 2i and 2i + 1 of byte row r
hold weight row i * ceil(out / 4) + r as code = weight + 1. Beside it is ``<name>.weight_scale``,
one float. In the offline ``autobitlinear`` form y is multiplied by it; in the ``bitlinear`` form,
which is the default where the config names no ``linear_class``, y is divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.models import Config, Linear, architecture, bitnet_linears
from wattune.errors import MissingDependencyError, ModelError

ROWS_PER_BYTE = 4


@dataclass(frozen=True)
class TernaryLayer:
    """A layer read from a checkpoint: weights int8 [out, in] and the factor that y is scaled by."""

    name: str
    weights: NDArray[np.int8]
    scale: float


def unpack_rows(packed: NDArray[np.uint8], out_features: int) -> NDArray[np.int8]:
    """Decode uint8 [ceil(out / 4), in] into int8 [out, in]; padding rows are dropped."""
    planes = [(packed >> np.uint8(2 * i)) & np.uint8(3) for i in range(ROWS_PER_BYTE)]
    codes = np.concatenate(planes)[:out_features]
    if codes.size and codes.max() > 2:
        row, column = np.argwhere(codes > 2)[0]
        raise ModelError(f"code 3 at row {row}, column {column}; allowed: 0, 1, 2 (weight + 1)")
    return codes.astype(np.int8) - np.int8(1)


def scale_divides(config: Config) -> bool:
    """Say whether y is divided by ``weight_scale`` instead of multiplied."""
    quantization = config.section("quantization_config")
    linear = quantization.choice("linear_class", ("autobitlinear", "bitlinear"), "bitlinear")
    # Online checkpoints hold float weights that are quantised at load: there is nothing to import.
    quantization.choice("quantization_mode", ("offline",), "offline")
    return linear == "bitlinear"


def read_layers(
    checkpoint: str | Path, config: str | Path | Mapping[str, Any]
) -> Iterator[TernaryLayer]:
    """Yield the ternary layers of a checkpoint, one in memory at a time.

    Raises `ModelError` for a file that is truncated or not safetensors, and for a layer that is
    missing or of another shape or dtype than the config says.
    """
    read = Config.read(config)
    architecture(read)
    divides = scale_divides(read)
    linears = bitnet_linears(read)
    with _open(checkpoint) as file:
        names = set(file.keys())
        for linear in linears:
            yield _read_layer(file, names, linear, divides, str(checkpoint))


def count_layers(config: str | Path | Mapping[str, Any]) -> int:
    """Return how many layers `read_layers` yields."""
    return len(bitnet_linears(Config.read(config)))


def _open(path: str | Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError("safetensors", "reading a checkpoint") from error
    try:
        return safe_open(str(path), framework="numpy")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: not a complete safetensors file ({error}); download or copy it again"
        ) from error


def _read_layer(
    file: Any, names: set[str], linear: Linear, divides: bool, source: str
) -> TernaryLayer:
    rows = -(-linear.out_features // ROWS_PER_BYTE)
    weight = f"{linear.name}.weight"
    packed = _tensor(file, names, weight, ("U8",), ((rows, linear.in_features),), source)
    name = f"{linear.name}.weight_scale"
    stored = float(
        _tensor(file, names, name, ("BF16", "F16", "F32"), ((1,), ()), source).reshape(())
    )
    if not np.isfinite(stored) or (divides and stored == 0):
        raise ModelError(f"{source}: {name} is {stored}; allowed: a finite number, not 0")
    try:
        weights = unpack_rows(packed, linear.out_features)
    except ModelError as error:
        raise ModelError(f"{source}: {weight}: {error}") from error
    return TernaryLayer(linear.name, weights, 1 / stored if divides else stored)


def _tensor(
    file: Any,
    names: set[str],
    name: str,
    dtypes: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    source: str,
) -> NDArray[Any]:
    if name not in names:
        raise ModelError(f"{source}: tensor {name!r} is missing; the config asks for it")
    view = file.get_slice(name)
    if view.get_dtype() not in dtypes:
        raise ModelError(
            f"{source}: {name} has dtype {view.get_dtype()}; allowed: {', '.join(dtypes)}"
        )
    shape = tuple(view.get_shape())
    if shape not in shapes:
        allowed = " or ".join(str(list(s)) for s in shapes)
        raise ModelError(f"{source}: {name} has shape {list(shape)}; allowed: {allowed}")
    tensor: NDArray[Any] = file.get_tensor(name)
    return tensor
