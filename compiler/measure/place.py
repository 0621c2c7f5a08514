"""Places: where the arguments of a kernel lie, this machine's memory or that of a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.memory import Guarded, pages

DRAWN_BYTES = 16 << 20

Fill = Callable[[int], NDArray[np.uint8]]


class Watched(Protocol):
    """Memory of one argument, whose surroundings are looked at after a call."""

    address: int
    size: int

    def write(self, data: NDArray[np.uint8]) -> None:
        """Fill the memory with so many bytes."""

    def read(self) -> NDArray[np.uint8]:
        """Return the bytes in the memory."""

    def intact(self) -> bool:
        """Say whether the bytes around the memory are as they were."""


@dataclass(frozen=True)
class Region:
    """Memory for copies of an argument; ``kept`` is what holds it."""

    address: int
    size: int
    kept: object


class Place(Protocol):
    """Memory that kernels work on; calls that were started there may still run."""

    def watched(self, size: int, writable: bool, alignment: int) -> Watched:
        """Return watched memory for one argument."""

    def region(self, size: int, fill: Fill) -> Region:
        """Return memory filled with what ``fill(count)`` draws, again and again."""

    def finish(self) -> None:
        """Wait until all calls have ended; raises what became of them."""


class Host:
    """This machine's memory."""

    def watched(self, size: int, writable: bool, alignment: int) -> Watched:
        """Return memory before a page that no access survives."""
        return Guarded(size, writable, alignment)

    def region(self, size: int, fill: Fill) -> Region:
        """Return memory on huge pages."""
        memory = pages(size, huge=True)
        drawn = fill(min(size, DRAWN_BYTES))
        for start in range(0, size, len(drawn)):
            part = memory[start : start + len(drawn)]
            part[:] = drawn[: len(part)]
        return Region(int(memory.ctypes.data), size, memory)

    def finish(self) -> None:
        """Calls have ended when they return."""
