"""Dtype names as numpy dtypes, bfloat16 included where ``ml_dtypes`` is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.errors import MissingDependencyError

FLOATS = ("float32", "bfloat16", "float16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of this name."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingDependencyError("ml_dtypes", "bfloat16 in numpy") from error
        name_or_type: Any = ml_dtypes.bfloat16
    else:
        name_or_type = name
    dtype: np.dtype[Any] = np.dtype(name_or_type)
    return dtype


def itemsize(name: str) -> int:
    """Return the bytes of one element, without needing ``ml_dtypes``."""
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def round_to(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Round to a dtype (to nearest, ties to even)."""
    return values.astype(numpy_dtype(name))


def unit_roundoff(name: str) -> float:
    """Return the greatest relative error of rounding to a float dtype."""
    return {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[name]
