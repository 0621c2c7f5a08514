"""From how much an ensemble disagrees to how wrong it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.errors import MissingDependencyError

Floats = NDArray[np.float64]


def nonnegative_least_squares(matrix: Floats, values: Floats) -> Floats:
    """Return x >= 0 that minimises |matrix x - values|; matrix [n, k], values [n]."""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingDependencyError("scipy", "fitting a cost model's constants") from error
    found: Floats = nnls(matrix, values)[0]
    return found


@dataclass(frozen=True)
class Calibration:
    """Variance of the error = ``slope`` x variance between the members + ``floor``.

    Members that saw nearly the same rows agree too well, and what none of them can know (noise,
    facts that are no features) does not show in their disagreement at all.
    """

    slope: float = 1.0
    floor: float = 0.0

    @classmethod
    def fit(cls, errors: Floats, disagreement: Floats, weights: Floats) -> Self:
        """Fit to errors [n] on rows that were not shown, and the members' standard deviations."""
        squares = np.stack([disagreement**2, np.full(len(errors), np.mean(disagreement**2))], 1)
        if not squares.any():
            return cls(1.0, float(np.average(errors**2, weights=weights)))
        # A square's own standard deviation grows with it: relative errors are what is alike.
        scale = np.sqrt(weights) / (squares[:, 0] + squares[:, 1])
        slope, floor = nonnegative_least_squares(squares * scale[:, None], errors**2 * scale)
        return cls(float(slope), float(floor) * float(squares[0, 1]))

    def std(self, disagreement: Floats) -> Floats:
        """Return the standard deviation of the error, [n]."""
        found: Floats = np.sqrt(self.slope * disagreement**2 + self.floor)
        return found

    def to_state(self) -> dict[str, float]:
        """Return plain data."""
        return {"slope": self.slope, "floor": self.floor}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the calibration that `to_state` described."""
        return cls(float(state["slope"]), float(state["floor"]))
