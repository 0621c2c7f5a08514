"""Rows of scores that selection gets wrong, for kernels of all targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hard_rows() -> NDArray[np.float32]:
    """Return 12 rows of 333: equal scores, NaN, infinities, neighbouring floats, all bits."""
    rng = np.random.default_rng(0)
    rows = np.full((12, 333), -np.inf, np.float32)
    rows[0] = 1.5
    rows[1] = np.nan
    rows[2, 7::50] = 0.0
    rows[3] = np.where(rng.random(333) < 0.5, 0.0, -0.0)
    rows[4] = np.where(rng.random(333) < 0.1, np.inf, np.nan)
    # Neighbouring floats, tiny and huge numbers of both signs.
    rows[5] = (np.arange(333) - 166).astype(np.int32).view(np.float32)
    rows[6] = rng.integers(0, 1 << 32, 333, dtype=np.uint32).view(np.float32)
    rows[7] = np.float32(1) + np.arange(333, dtype=np.float32) * np.float32(2**-23)
    rows[8] = -np.arange(333)
    rows[9] = np.arange(333)
    rows[10] = rng.integers(0, 3, 333)
    return rows
