"""What the peers of ternary GEMM start from: activations in float and int8, weights, scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.case import Setup
from wattune.ops import TernaryGemm
from wattune.ops.quantize import quantize_per_token


@dataclass(frozen=True)
class TernaryData:
    """Inputs of one problem: x, q [tokens, in], weights [out, in], scale [out]."""

    x: NDArray[np.float32]
    q: NDArray[np.int8]
    weights: NDArray[np.int8]
    scale: NDArray[np.float32]

    @classmethod
    def make(cls, setup: Setup) -> TernaryData:
        """Derive what a peer needs from the problem's own inputs."""
        problem, inputs = setup.problem, setup.inputs
        assert isinstance(problem, TernaryGemm)
        x = inputs["x"].astype(np.float32)
        q = inputs["x"] if problem.dtype == "int8" else quantize_per_token(x)[0]
        scale = np.broadcast_to(inputs.get("scale", np.float32(1)), problem.out_features)
        return cls(x, q, inputs["weights"], scale.astype(np.float32))

    @property
    def dense(self) -> NDArray[np.float32]:
        """Return the weights with their scale."""
        dense: NDArray[np.float32] = self.weights * self.scale[:, None]
        return dense

    def product(self) -> NDArray[np.float64]:
        """Return x @ dense^T in float64."""
        return self.x.astype(np.float64) @ self.dense.astype(np.float64).T

    def sums(self) -> NDArray[np.float64]:
        """Return q @ weights^T."""
        return self.q.astype(np.float64) @ self.weights.astype(np.float64).T
