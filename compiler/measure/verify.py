"""Verification: a kernel's outputs against the reference, before it is timed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wattune.compiler.measure.cases import Binder, Bound, as_bytes, smaller
from wattune.compiler.measure.ffi import Library
from wattune.compiler.measure.place import Place
from wattune.errors import MeasureError
from wattune.ops import Problem, Tolerance, operator
from wattune.ops.dtypes import numpy_dtype
from wattune.ops.operator import Array


def verify(
    binder: Binder, problem: Problem, library: Library, pack: str | None, sizes: Mapping[str, int]
) -> Bound:
    """Check a kernel at the bucket's upper end, and at an odd size in the least kind memory.

    Returns the call at the upper end. Raises `MeasureError` with what is wrong.
    """
    bound = binder.bind(problem, pack, sizes)
    check(bound, library, binder.place)
    check(binder.bind(smaller(problem), pack, sizes, tight=True), library, binder.place)
    return bound


def check(bound: Bound, library: Library, place: Place) -> None:
    """Run once and compare; everything that a call must leave alone is looked at."""
    library.call("kernel", bound.call)
    place.finish()
    problem, expected = bound.case.problem, bound.case.expected
    where = ", ".join(f"{name}={size}" for name, size in problem.sizes.items())
    for argument in bound.arguments:
        tensor, name = bound.tensors[argument.name], argument.name
        if not tensor.memory.intact():
            raise MeasureError("wrong_result", f"{name} is overrun ({where})")
        if not tensor.unchanged():
            # Other candidates read the same memory.
            assert tensor.kept is not None
            tensor.fill(tensor.kept)
            raise MeasureError("wrong_result", f"{name} was overwritten ({where})")
        if name in expected:
            right = expected[name]
            left = tensor.memory.read()
            got = left.view(numpy_dtype(argument.dtype)).reshape(right.shape)
            tolerance = operator(problem.operator).tolerance(problem, name)
            # Rows of a state that must stay as they are may hold anything.
            if argument.updated and np.array_equal(left, as_bytes(right)):
                continue
            if message := difference(got, right, tolerance):
                raise MeasureError("wrong_result", f"{name}{message} ({where})")


def difference(got: Array, expected: Array, tolerance: Tolerance) -> str:
    """Say where an output first differs by more than the tolerance; empty where it does not."""
    if np.issubdtype(expected.dtype, np.integer):
        wrong = got != expected
    else:
        exact = expected.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.abs(got.astype(np.float64) - exact)
            near = error <= tolerance.atol + tolerance.rtol * np.abs(exact)
        # NaN is near nothing; near an infinity is only itself.
        wrong = ~(near & np.isfinite(exact) | (got == expected))
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    count = f"{int(wrong.sum())} of {wrong.size} wrong"
    return f"{list(at)} is {got[at]}, expected {expected[at]}; {count}"
