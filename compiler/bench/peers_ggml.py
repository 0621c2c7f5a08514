"""Peers in ggml: ternary matrix products and flash attention, as llama.cpp runs them."""

from __future__ import annotations

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.ggml import Ggml, Graphs, quantized
from wattune.compiler.bench.ternary import TernaryData

BLOCK = 256


class TernaryMatMul(Case):
    """``ggml_mul_mat`` of one ternary type with float32 activations, quantised inside."""

    tolerance = 0.02

    def __init__(self, setup: Setup, type_name: str) -> None:
        """Quantise the weights and build one graph per copy."""
        self.data = TernaryData.make(setup)
        out, inside = self.data.weights.shape
        if inside % BLOCK:
            raise Unavailable(f"needs in_features % {BLOCK} == 0")
        ggml = Ggml()
        packed = quantized(ggml, type_name, np.ascontiguousarray(self.data.dense))
        tokens = len(self.data.x)
        self.copies = max(1, -(-setup.footprint // packed.size))
        result_bytes = tokens * out * 4
        size = self.copies * (packed.size + result_bytes) + self.data.x.nbytes
        self.graphs = graphs = Graphs(ggml, setup.threads, self.copies, size)
        x = graphs.tensor("f32", inside, tokens)
        graphs.fill(x, self.data.x)
        # All weights first, so that they lie side by side.
        weights = [graphs.tensor(type_name, inside, out) for _ in range(self.copies)]
        for weight in weights:
            graphs.fill(weight, packed)
        products = [ggml.ggml_mul_mat(graphs.context, weight, x) for weight in weights]
        for product in products:
            graphs.add(product)
        self.moved = int(packed.size + self.data.x.nbytes + result_bytes)

    def call(self, copy: int) -> int:
        """Compute one graph."""
        return self.graphs.compute(copy)

    def error(self) -> float:
        """Compare with the product in float64."""
        shape = (len(self.data.x), self.data.weights.shape[0])
        return relative_error(self.graphs.result(0, *shape), self.data.product())
