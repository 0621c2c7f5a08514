"""Our own kernels, as a deployment runs them: the exported library, loaded without TVM."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.rotation import rotate
from wattune.ops import Argument, Tolerance, operator
from wattune.ops.operator import Array


class Ours(Case):
    """A kernel of an exported library; the outputs are given, so that nothing is allocated.

    Packed data, every array of them, and the states rotate: they are what a step of decoding finds
    in memory.
    """

    def __init__(self, setup: Setup) -> None:
        """Load the library, pack the weights, and copy what rotates over the footprint."""
        if not setup.library:
            raise Unavailable("no library was compiled")
        # tvm_ffi imports torch where it is installed; a deployment need not have it.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from wattune.compiler.library import load

        self.problem, self.expected = setup.problem, setup.expected
        arguments = operator(setup.problem.operator).arguments(setup.problem)
        self.kernel: Any = getattr(load(setup.library), setup.problem.operator)
        given = _by_role(arguments, setup.inputs)
        self.out = {
            a.name: np.zeros_like(setup.expected[a.name]) for a in arguments if a.role == "output"
        }
        results = tuple(self.out.values())
        self.inputs: dict[str, Array] = given["input"]
        self.results = results[0] if len(results) == 1 else results
        self.sets = self._sets(setup, arguments, given["state"])
        self.copies = len(self.sets)

    def _sets(
        self, setup: Setup, arguments: tuple[Argument, ...], states: Mapping[str, Array]
    ) -> list[tuple[list[Any], dict[str, Array]]]:
        """Return what each copy is called with: packed data, and states by name."""
        sources = {
            a.source.name: setup.inputs[a.source.name]
            for a in arguments
            if a.role == "packed" and a.source is not None
        }
        if not sources:
            self.moved = setup.moved
            return [([], views) for views in rotate(states, setup.footprint, self.moved)]
        packed = self.kernel.pack(**sources)
        others = (*self.inputs.values(), *self.out.values())
        share = operator(setup.problem.operator).packed_share(setup.problem)
        self.moved = int(share * packed.nbytes) + sum(array.nbytes for array in others)
        views = rotate(packed.data, setup.footprint, self.moved)
        return [([dataclasses.replace(packed, data=data)], {}) for data in views]

    def call(self, copy: int) -> object:
        """Call the kernel."""
        packed, states = self.sets[copy]
        return self.kernel(*packed, out=self.results, **states, **self.inputs)

    def error(self) -> float:
        """Compare outputs and updated states; the worst of them counts."""
        for array in self.out.values():
            array[...] = 0
        self.call(0)
        op, worst = operator(self.problem.operator), (0.0, 0.0)
        for name, expected in self.expected.items():
            found = self.out[name] if name in self.out else self.sets[0][1][name]
            distance = 0.0 if _same(found, expected) else relative_error(found, expected)
            allowed = _allowed(op.tolerance(self.problem, name), expected)
            worst = max(worst, (distance, allowed), key=lambda pair: pair[0] - pair[1])
        error, self.tolerance = worst
        return error


def _by_role(
    arguments: tuple[Argument, ...], inputs: Mapping[str, Array]
) -> dict[str, dict[str, Array]]:
    return {
        role: {a.name: inputs[a.name] for a in arguments if a.role == role}
        for role in ("input", "state")
    }


def _allowed(tolerance: Tolerance, expected: Array) -> float:
    """Return what an element's tolerance makes of the norm."""
    finite = expected[np.isfinite(expected)].astype(np.float64)
    scale = float(np.linalg.norm(finite)) / max(1, finite.size) ** 0.5
    return float(tolerance.rtol + tolerance.atol / max(scale, 1e-30))


def _same(found: Array, expected: Array) -> bool:
    """Say whether the bytes are the same, whatever they mean."""
    return found.nbytes == expected.nbytes and bool(
        np.array_equal(found.reshape(-1).view(np.uint8), expected.reshape(-1).view(np.uint8))
    )
