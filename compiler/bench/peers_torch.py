"""Peers of ternary GEMM in torch: dense ``linear``, ``_int_mm`` and int4 weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.rotation import rotate
from wattune.compiler.bench.ternary import TernaryData

INT4_GROUP = 128
INT4_ZERO = 8


def load_torch(threads: int) -> Any:
    """Return torch, with this many threads and without gradients."""
    try:
        import torch
    except ImportError:
        raise Unavailable("torch is not installed") from None
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch


class TorchCase(Case):
    """A torch function of x and a weight that is rotated over copies."""

    def __init__(self, torch: Any, x: Any, weight: NDArray[np.uint8], footprint: int) -> None:
        """Copy the weight's bytes over the footprint."""
        self.torch = torch
        self.x = x
        sets = rotate({"weight": weight}, footprint, weight.nbytes)
        self.views = [torch.from_numpy(views["weight"]) for views in sets]
        self.copies = len(self.views)

    def compare(self, y: Any, expected: NDArray[Any]) -> float:
        """Set the bytes that a call moves from its result, and compare it."""
        self.moved = int(self.views[0].numel() + self.x.nbytes + y.nbytes)
        return relative_error(y.to(self.torch.float32).numpy(), expected)


class Linear(TorchCase):
    """``torch.nn.functional.linear`` on dense weights of one float type."""

    tolerance = 0.02

    def __init__(self, setup: Setup, dtype: str) -> None:
        """Prepare x and W in ``dtype``."""
        torch = load_torch(setup.threads)
        self.data = TernaryData.make(setup)
        kind = getattr(torch, dtype)
        weight = torch.from_numpy(self.data.dense).to(kind)
        x = torch.from_numpy(self.data.x).to(kind)
        super().__init__(torch, x, weight.view(torch.uint8).view(-1).numpy(), setup.footprint)
        self.weights = [view.view(kind).view(weight.shape) for view in self.views]

    def call(self, copy: int) -> Any:
        """Return y."""
        return self.torch.nn.functional.linear(self.x, self.weights[copy])

    def error(self) -> float:
        """Compare with the product in float64."""
        return self.compare(self.call(0), self.data.product())


class IntMm(TorchCase):
    """``torch._int_mm`` on int8 activations and the transposed view of int8 weights: sums only."""

    tolerance = 0.0

    def __init__(self, setup: Setup) -> None:
        """Prepare q and W."""
        torch = load_torch(setup.threads)
        self.data = TernaryData.make(setup)
        x = torch.from_numpy(np.ascontiguousarray(self.data.q))
        weight = self.data.weights.view(np.uint8).reshape(-1)
        super().__init__(torch, x, weight, setup.footprint)
        shape = self.data.weights.shape
        self.weights = [view.view(torch.int8).view(shape).t() for view in self.views]

    def call(self, copy: int) -> Any:
        """Return the int32 sums."""
        return self.torch._int_mm(self.x, self.weights[copy])

    def error(self) -> float:
        """Compare with the exact sums."""
        return self.compare(self.call(0), self.data.sums())


class Int4(TorchCase):
    """``torch._weight_int4pack_mm_for_cpu``: bfloat16 activations, int4 weights by groups."""

    tolerance = 0.02

    def __init__(self, setup: Setup) -> None:
        """Pack weight + 8 as int4 with the scale of each group and a zero point of 0."""
        torch = load_torch(setup.threads)
        self.data = TernaryData.make(setup)
        out, inside = self.data.weights.shape
        if inside % INT4_GROUP or out % 16:
            raise Unavailable(f"needs in_features % {INT4_GROUP} == 0 and out_features % 16 == 0")
        codes = torch.from_numpy(self.data.weights.astype(np.int32) + INT4_ZERO)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        scales = np.zeros((inside // INT4_GROUP, out, 2), np.float32)
        scales[:, :, 0] = self.data.scale
        zeros = torch.from_numpy(scales).to(torch.bfloat16)
        parts = [packed.view(torch.uint8).view(-1), zeros.view(torch.uint8).view(-1)]
        x = torch.from_numpy(self.data.x).to(torch.bfloat16)
        super().__init__(torch, x, torch.cat(parts).numpy(), setup.footprint)
        cut = parts[0].numel()
        self.weights = [
            (
                view[:cut].view(packed.dtype).view(packed.shape),
                view[cut:].view(torch.bfloat16).view(zeros.shape),
            )
            for view in self.views
        ]

    def call(self, copy: int) -> Any:
        """Return y."""
        packed, scales = self.weights[copy]
        return self.torch.ops.aten._weight_int4pack_mm_for_cpu(self.x, packed, INT4_GROUP, scales)

    def error(self) -> float:
        """Compare with the product in float64."""
        return self.compare(self.call(0), self.data.product())
