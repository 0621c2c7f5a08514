"""What a benchmarked implementation is, and the copies of its weights that calls rotate over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.memory import pages
from wattune.compiler.measure.pool import stride_of
from wattune.ops import Problem
from wattune.ops.operator import Array

Bytes = NDArray[np.uint8]


class Unavailable(Exception):
    """An implementation that is not installed or cannot serve this problem; says why."""


@dataclass(frozen=True)
class Setup:
    """What every implementation of a problem starts from.

    ``footprint`` is the bytes of weights that calls rotate over, 0 for one hot copy; ``library``
    is the path of the exported kernels.
    """

    problem: Problem
    inputs: Mapping[str, Array]
    threads: int
    footprint: int = 0
    library: str = ""


class Case(ABC):
    """One implementation, ready to run.

    ``tolerance`` is how far, relative to the reference's norm, it may be: peers that do not
    quantise activations, or quantise them otherwise, are not exact.
    """

    moved: int
    copies: int
    tolerance: float

    @abstractmethod
    def call(self, copy: int) -> object:
        """Run once on one copy of the weights."""

    @abstractmethod
    def error(self) -> float:
        """Run once and return the distance from the reference over the reference's norm."""


def rotate(data: Bytes, footprint: int) -> list[Bytes]:
    """Copy packed weights as often as fills the footprint, at least once; views of one buffer."""
    stride = stride_of(data.size)
    count = max(1, -(-footprint // stride))
    buffer = pages(count * stride, huge=True)
    views = [buffer[i * stride : i * stride + data.size] for i in range(count)]
    for view in views:
        view[:] = data
    return views


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return |found - expected| / |expected| in the Euclidean norm."""
    exact = expected.astype(np.float64)
    distance = float(np.linalg.norm(found.astype(np.float64) - exact))
    return distance / max(float(np.linalg.norm(exact)), 1e-30)
