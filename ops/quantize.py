"""Activation quantisation to int8, per token (BitNet b1.58 ``activation_quant``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The smallest absolute maximum: an all-zero token has the scale 127 / 1e-5, not infinity.
SMALLEST_ABSMAX = np.float32(1e-5)


def quantize_per_token(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return q = clip(rint(float32(x) * s), -128, 127) and s = 127 / max(absmax, 1e-5).

    Shapes: x [tokens, features]; q the same, s [tokens]. All arithmetic is in float32, as in the
    Hugging Face model, so that q is defined bit for bit.
    """
    values = x.astype(np.float32)
    absmax = np.abs(values).max(axis=1, initial=0.0)
    s = (np.float32(127) / np.maximum(absmax, SMALLEST_ABSMAX)).astype(np.float32)
    q = np.clip(np.rint(values * s[:, None]), -128, 127).astype(np.int8)
    return q, s
