"""What a benchmarked implementation is, and what it starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.data import Arrays
from wattune.ops import Problem


class Unavailable(Exception):
    """An implementation that is not installed or cannot serve this problem; says why."""


@dataclass(frozen=True)
class Setup:
    """What every implementation of a problem starts from.

    ``moved`` is the bytes that any implementation must move. ``footprint`` is the bytes of weights
    or caches that calls rotate over, 0 for one hot copy; ``library`` is the path of the exported
    kernels.
    """

    problem: Problem
    inputs: Arrays
    expected: Arrays
    moved: int
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
        """Run once on one copy of the data."""

    @abstractmethod
    def error(self) -> float:
        """Run once and return the distance from the reference over the reference's norm."""


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return |found - expected| / |expected| in the Euclidean norm; infinities must be equal."""
    if found.shape != expected.shape:
        return float("inf")
    exact = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(found == expected, 0.0, found.astype(np.float64) - exact)
    scale = float(np.linalg.norm(exact[np.isfinite(exact)]))
    return float(np.linalg.norm(difference)) / max(scale, 1e-30)
