"""Inputs and reference of a problem: drawn once, then mapped by every implementation's process.

Caches of long contexts take seconds to draw and half a gigabyte to hold.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ProblemError
from wattune.ops import Problem, Work, operator
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


def draw(problem: Problem, seed: int, ragged: bool = False) -> Data:
    """Draw inputs and compute the reference; requests are full, or as long as `lengths` says."""
    op = operator(problem.operator)
    name = lengths_name(problem) if ragged else ""
    inputs = op.make_inputs(problem, np.random.default_rng(seed))
    if name:
        inputs[name] = lengths(problem, seed)
    return Data(inputs, op.reference(problem, inputs))


def lengths_name(problem: Problem) -> str:
    """Name the argument that holds the lengths of requests."""
    for argument in operator(problem.operator).arguments(problem):
        if argument.values is not None and argument.values.maximum == "context":
            return argument.name
    raise ProblemError(f"{problem.operator} has no requests of different lengths")


def lengths(problem: Any, seed: int) -> NDArray[np.int32]:
    """Draw lengths between an eighth of the context and all of it, which the first request has."""
    least = -(-problem.context // 8)
    rng = np.random.default_rng(seed)
    found: NDArray[np.int32] = rng.integers(
        least, problem.context + 1, problem.batch, dtype=np.int32
    )
    found[0] = problem.context
    return found


def work_of(problem: Problem, seed: int, ragged: bool = False) -> Work:
    """Return the work of a problem, or that of its ragged requests."""
    op = operator(problem.operator)
    if not ragged:
        return op.work(problem)
    each = [
        op.work(dataclasses.replace(problem, batch=1, context=int(length)))  # type: ignore[call-arg]
        for length in lengths(problem, seed)
    ]
    return Work(sum(w.operations for w in each), sum(w.bytes for w in each), each[0].integer)


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
