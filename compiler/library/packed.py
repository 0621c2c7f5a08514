"""Packed tensors: weights in the layout that a library's kernels read; to and from safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.library.frameworks import torch_module
from wattune.errors import MissingDependencyError, ModelError
from wattune.ops.operator import Array

ALIGNMENT = 64
_FORMAT = "wattune.packed"
_VERSION = "1"


def aligned_empty(count: int) -> NDArray[np.uint8]:
    """Return uninitialised bytes that start at a multiple of 64."""
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count]


def aligned(array: Array) -> Array:
    """Return the array, or a copy of it that is contiguous and starts at a multiple of 64."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True, eq=False)
class Packed:
    """What one `Entry.pack` made: an operator's packed arguments by name.

    ``layout`` is how the bits are ordered, the format first; ``shared`` names the data, so that
    every variant that reads it accepts it; ``fields`` are the problem's fields that it fixes
    (``out_features``, ``in_features``, ...).
    """

    operator: str
    layout: str
    shared: str
    fields: Mapping[str, Any]
    data: Mapping[str, Array]
    _torch: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Bring the arrays into memory that kernels can read."""
        object.__setattr__(self, "data", {name: aligned(a) for name, a in self.data.items()})
        # Made here where it can be: torch.compile does not trace what is made at first use.
        if torch_module() is not None:
            object.__setattr__(self, "_torch", _as_torch(self.data))

    @property
    def format(self) -> str:
        """Name how values became bits."""
        return self.layout.partition(":")[0]

    @property
    def nbytes(self) -> int:
        """Count the bytes of all arrays."""
        return sum(array.nbytes for array in self.data.values())

    @cached_property
    def dtype(self) -> str:
        """Tell kinds of packed data apart, as a tensor's dtype does: equal ones, same kernels."""
        shapes = ";".join(f"{name}{array.shape}" for name, array in sorted(self.data.items()))
        return f"{self.operator}|{self.layout}|{self.shared}|{shapes}"

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """Return the arrays as tvm-ffi tensors, which are passed without being converted again."""
        import tvm_ffi

        return {name: tvm_ffi.from_dlpack(array) for name, array in self.data.items()}

    @property
    def torch(self) -> dict[str, Any]:
        """Return what ``torch.ops.wattune`` takes for this: torch tensors (no copy) and layout."""
        if self._torch is None:
            object.__setattr__(self, "_torch", _as_torch(self.data))
        return {**(self._torch or {}), "layout": self.layout}

    def to_safetensors(self, path: str | Path) -> None:
        """Write a file that `from_safetensors` reads."""
        save_packed(path, {"": self})

    @classmethod
    def from_safetensors(cls, path: str | Path) -> Packed:
        """Read `to_safetensors`'s file."""
        found = load_packed(path)
        if list(found) != [""]:
            raise ModelError(f"{path} holds {len(found)} packed layers; read it with load_packed")
        return found[""]

    def __repr__(self) -> str:
        """Show what was packed, without the bytes."""
        fields = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"<packed {self.operator}({fields}) as {self.layout}, {self.nbytes} bytes>"


def _as_torch(data: Mapping[str, Array]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in data.items()}


def save_packed(path: str | Path, layers: Mapping[str, Packed]) -> None:
    """Write packed layers by name into one safetensors file."""
    safetensors = _safetensors()
    tensors = {
        _tensor_name(layer, argument): array
        for layer, packed in layers.items()
        for argument, array in packed.data.items()
    }
    described = {
        layer: {
            "operator": packed.operator,
            "layout": packed.layout,
            "shared": packed.shared,
            "fields": dict(packed.fields),
            "arguments": list(packed.data),
        }
        for layer, packed in layers.items()
    }
    metadata = {"format": _FORMAT, "version": _VERSION, "layers": json.dumps(described)}
    try:
        safetensors.numpy.save_file(tensors, str(path), metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"cannot write {path}: {error}") from error


def load_packed(path: str | Path) -> dict[str, Packed]:
    """Read packed layers by name; a file of something else is a `ModelError`."""
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
                raise ModelError(
                    f"{path} holds {metadata.get('format', 'no')} data of version "
                    f"{metadata.get('version', 'unknown')}; expected {_FORMAT} {_VERSION}"
                )
            return {
                layer: Packed(
                    entry["operator"],
                    entry["layout"],
                    entry["shared"],
                    entry["fields"],
                    {a: file.get_tensor(_tensor_name(layer, a)) for a in entry["arguments"]},
                )
                for layer, entry in json.loads(metadata["layers"]).items()
            }
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot read packed weights from {path}: {error}") from error


def _tensor_name(layer: str, argument: str) -> str:
    return f"{layer}.{argument}" if layer else argument


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise MissingDependencyError("safetensors", "a file of packed weights") from error
    return safetensors
