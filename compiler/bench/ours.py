"""Our own kernels, as a deployment runs them: the exported library, loaded without TVM."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error, rotate
from wattune.ops import operator


class Ours(Case):
    """A kernel of an exported library; the output is given, so that nothing is allocated."""

    def __init__(self, setup: Setup) -> None:
        """Load the library, pack the weights and copy them over the footprint."""
        if not setup.library:
            raise Unavailable("no library was compiled")
        # tvm_ffi imports torch where it is installed; a deployment need not have it.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from wattune.compiler.library import load

        problem, op = setup.problem, operator(setup.problem.operator)
        arguments = op.arguments(problem)
        self.kernel: Any = getattr(load(setup.library), problem.operator)
        sources = {
            a.source.name: setup.inputs[a.source.name]
            for a in arguments
            if a.role == "packed" and a.source is not None
        }
        packed = self.kernel.pack(**sources)
        # The weights rotate; a scale is a few bytes.
        weight = max(packed.data, key=lambda name: packed.data[name].nbytes)
        views = rotate(packed.data[weight].view(np.uint8).reshape(-1), setup.footprint)
        self.packed = [
            dataclasses.replace(packed, data={**packed.data, weight: view}) for view in views
        ]
        self.copies = len(views)
        self.inputs = {a.name: setup.inputs[a.name] for a in arguments if a.role == "input"}
        self.expected = op.reference(problem, setup.inputs)["y"]
        self.tolerance = op.tolerance(problem, "y").rtol
        self.y = np.zeros_like(self.expected)
        inputs = sum(value.nbytes for value in self.inputs.values())
        self.moved = int(packed.nbytes + inputs + self.y.nbytes)
        self.x = self.inputs.pop("x")

    def call(self, copy: int) -> object:
        """Call the kernel."""
        return self.kernel(self.x, self.packed[copy], out=self.y, **self.inputs)

    def error(self) -> float:
        """Compare with the reference; sums are exact."""
        self.y[:] = 0
        self.call(0)
        return relative_error(self.y, self.expected)
