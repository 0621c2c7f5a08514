"""Compile a template's kernel in this process, run it, compare it with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.amx import allow_amx
from wattune.ops import Argument, Problem, operator
from wattune.ops.dtypes import numpy_dtype
from wattune.schedules.program import CACHE_LINE
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template

Array = NDArray[Any]
# Rows that a kernel must not touch, before and after every output.
GUARD = 2
# Bytes around workspaces that a kernel must not touch; they keep the workspace's alignment.
SCRATCH_GUARD = 4096


def compile_function(function: Any, target: Target) -> Any:
    """Return the callable of one PrimFunc."""
    import tvm

    if target.has("amx_tile") and target.runs_here():
        allow_amx()
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.tirx.build(module, tvm.target.Target(target.llvm()))["main"]


def pack_weights(
    problem: Problem,
    target: Target,
    template: Template,
    values: Mapping[str, Value],
    inputs: Mapping[str, Array],
) -> dict[str, Any]:
    """Return every packed argument, made by the template's pack programs or copied."""
    import tvm

    sizes = template.sizes(problem, target, values)
    programs = template.pack(problem, values)
    packed = {}
    for argument in operator(problem.operator).arguments(problem):
        if argument.source is None:
            continue
        source = tvm.runtime.tensor(np.ascontiguousarray(inputs[argument.source.name]))
        if argument.layout_dependent:
            data = tvm.runtime.empty(argument.concrete(sizes), argument.dtype)
            compile_function(programs[argument.name], target)(source, data)
            packed[argument.name] = data
        else:
            packed[argument.name] = source
    return packed


def run_kernel(
    problem: Problem,
    target: Target,
    template: Template,
    values: Mapping[str, Value],
    inputs: Mapping[str, Array],
    tokens: int | None = None,
    rewrite: Any = None,
    compiled: Any = None,
    in_place: Sequence[str] = (),
) -> dict[str, Array]:
    """Run a kernel; returns outputs, which are guarded and start as poison, and updated states.

    Sizes are those of the inputs' shapes; ``tokens`` takes only so many rows of them.
    ``rewrite`` maps the lowered PrimFunc to the one that is compiled (an emulator's hook).
    ``compiled``: the kernel, where a test runs one often. Inputs named in ``in_place`` are not
    copied.
    """
    import tvm
    from tvm_ffi import from_dlpack

    kernel = compiled
    if kernel is None:
        function = template.lower(problem, target, values)
        kernel = compile_function(function if rewrite is None else rewrite(function), target)
    arguments = operator(problem.operator).arguments(problem)
    sizes = {**problem.extents, **bound_sizes(arguments, inputs)}
    sizes.update(template.sizes(problem, target, values))
    if tokens:
        sizes.update(dict.fromkeys(problem.sizes, tokens))
    packed = pack_weights(problem, target, template, values, inputs)
    calls: list[Any] = []
    guarded: dict[str, Array] = {}
    states: dict[str, Array] = {}
    scratch = _noise(2 * SCRATCH_GUARD)
    for argument in arguments:
        shape = argument.concrete(sizes)
        if argument.name in packed:
            calls.append(packed[argument.name])
        elif argument.role == "workspace":
            # Workspaces hold whatever was there before: kernels must not count on zeros.
            scratch = _noise(shape[0] + 2 * SCRATCH_GUARD)
            calls.append(from_dlpack(scratch[SCRATCH_GUARD:-SCRATCH_GUARD]))
        elif argument.role == "output":
            whole = _poison((shape[0] + 2 * GUARD, *shape[1:]), argument.dtype)
            guarded[argument.name] = whole
            calls.append(from_dlpack(_dlpack(whole[GUARD : len(whole) - GUARD])))
        elif argument.updated:
            whole = _aligned(inputs[argument.name])
            states[argument.name] = whole
            calls.append(from_dlpack(_dlpack(whole)))
        elif argument.name in in_place:
            calls.append(from_dlpack(_dlpack(inputs[argument.name])))
        else:
            rows = shape[0] if isinstance(argument.shape[0], str) else None
            calls.append(tvm.runtime.tensor(np.ascontiguousarray(inputs[argument.name][:rows])))
    kernel(*calls)
    clean = _noise(len(scratch))
    for part in (slice(0, SCRATCH_GUARD), slice(-SCRATCH_GUARD, None)):
        assert scratch[part].tobytes() == clean[part].tobytes(), "wrote beyond the workspace"
    for name, whole in guarded.items():
        poison = _poison(whole.shape, str(whole.dtype))
        for part in (slice(0, GUARD), slice(len(whole) - GUARD, None)):
            assert whole[part].tobytes() == poison[part].tobytes(), f"{name}: wrote out of bounds"
    outputs = {name: whole[GUARD : len(whole) - GUARD] for name, whole in guarded.items()}
    return {**outputs, **states}


def bound_sizes(arguments: Sequence[Argument], inputs: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes that the inputs' shapes give to names."""
    return {
        name: size
        for a in arguments
        if a.name in inputs
        for name, size in zip(a.shape, inputs[a.name].shape, strict=True)
        if isinstance(name, str)
    }


def _aligned(array: Array) -> Array:
    """Copy an array to a cache line's start."""
    whole = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -whole.ctypes.data % CACHE_LINE
    found = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def _noise(count: int) -> NDArray[np.uint8]:
    """Return the same random bytes every time, aligned to cache lines."""
    whole = np.empty(count + CACHE_LINE, np.uint8)
    start = -whole.ctypes.data % CACHE_LINE
    aligned = whole[start : start + count]
    aligned[:] = np.random.default_rng(9).integers(0, 256, count, dtype=np.uint8)
    return aligned


def _dlpack(array: Array) -> Any:
    """Wrap an array for tvm-ffi; numpy's own DLPack does not know bfloat16."""
    if str(array.dtype) != "bfloat16":
        return array
    import torch

    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _poison(shape: tuple[int, ...], dtype: str) -> Array:
    kind = numpy_dtype(dtype)
    value = np.iinfo(kind).min if np.issubdtype(kind, np.integer) else float("nan")
    return np.full(shape, value, kind)


def assert_matches(
    problem: Problem, got: Mapping[str, Array], expected: Mapping[str, Array]
) -> None:
    """Compare outputs with the reference's first rows under the operator's tolerance."""
    for name, want in expected.items():
        tolerance = operator(problem.operator).tolerance(problem, name)
        # Rows of states that stay as they are may hold poison, which equals only itself.
        if got[name].tobytes() == want[: len(got[name])].tobytes():
            continue
        have = got[name].astype(np.float64)
        np.testing.assert_allclose(
            have, want[: len(have)].astype(np.float64), rtol=tolerance.rtol, atol=tolerance.atol
        )
