"""Inputs and reference of a problem: drawn once, then mapped by every implementation's process.

Caches of long contexts take seconds to draw and half a gigabyte to hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattune.ops import Problem, operator
from wattune.ops.dtypes import numpy_dtype
from wattune.ops.operator import Array

# Smaller arrays are read: mapped ones lie on small pages.
_MAPPED_BYTES = 16 << 20
_INDEX = "index.json"

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Data:
    """Inputs of one problem, and what the reference makes of them."""

    inputs: Arrays
    expected: Arrays


def draw(problem: Problem, seed: int) -> Data:
    """Draw inputs and compute the reference."""
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, np.random.default_rng(seed))
    return Data(inputs, op.reference(problem, inputs))


def save(data: Data, folder: Path) -> None:
    """Write a file an array, and an index of them."""
    index = {}
    for kind, arrays in (("inputs", data.inputs), ("expected", data.expected)):
        index[kind] = {name: [a.dtype.name, list(a.shape)] for name, a in arrays.items()}
        for name, array in arrays.items():
            np.ascontiguousarray(array).view(np.uint8).tofile(_file(folder, kind, name))
    (folder / _INDEX).write_text(json.dumps(index))


def load(folder: Path) -> Data:
    """Read what `save` wrote; large arrays are mapped, and writing to them changes no file."""
    index = json.loads((folder / _INDEX).read_text())
    found = {
        kind: {name: _read(_file(folder, kind, name), *how) for name, how in arrays.items()}
        for kind, arrays in index.items()
    }
    return Data(**found)


def _file(folder: Path, kind: str, name: str) -> Path:
    return folder / f"{kind}.{name}.bin"


def _read(path: Path, dtype_name: str, shape: list[int]) -> Array:
    dtype = numpy_dtype(dtype_name)
    if math.prod(shape) * dtype.itemsize < _MAPPED_BYTES:
        return np.fromfile(path, np.uint8).view(dtype).reshape(shape)
    return np.asarray(np.memmap(path, dtype, "c", shape=tuple(shape)))
