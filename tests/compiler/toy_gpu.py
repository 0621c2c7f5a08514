"""A made-up operator for GPUs: lengths the host cannot read, a workspace, two kernels.

y[r, c] = factor * x[r, c] for c < lengths[r], else 0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.compiler.toy import ToyOperator

from wattune import ops
from wattune.compiler.library.choose import choose
from wattune.compiler.library.package import build, compile
from wattune.ops import Argument, Problem
from wattune.ops.operator import Limit, Values
from wattune.schedules.cuda.base import WARP, CudaTemplate
from wattune.schedules.cuda.program import GpuProgram, Launch, gpu_program
from wattune.schedules.program import CACHE_LINE, Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Template, register_module

_ELEMENTS = 1 << 40


@dataclass(frozen=True)
class Ragged(Problem):
    """``served`` is the bucket of the kernel that served each row."""

    operator: ClassVar[str] = "ragged"
    runtime: ClassVar[tuple[str, ...]] = ("rows", "length")
    open_ended: ClassVar[tuple[str, ...]] = ("length",)
    free: ClassVar[tuple[str, ...]] = ("capacity",)

    rows: int
    length: int
    factor: float = 2.0
    dtype: str = "float32"


class RaggedOperator(ToyOperator[Ragged]):
    name = "ragged"
    summary = "scaled rows of different lengths"
    problem = Ragged

    @property
    def signature(self) -> tuple[str, ...]:
        return ("x", "lengths", "workspace", "y", "served")

    def arguments(self, problem: Ragged) -> tuple[Argument, ...]:
        lengths = Values(0, Limit("capacity"), maximum="length")
        return (
            Argument("x", ("rows", "capacity"), problem.dtype, "input"),
            Argument("lengths", ("rows",), "int32", "input", values=lengths),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("y", ("rows", "capacity"), problem.dtype, "output"),
            Argument("served", ("rows", 2), "int32", "output"),
        )


class RaggedTemplate(CudaTemplate):
    name = "ragged_gpu"
    operator = "ragged"

    def applies(self, problem: Ragged, target: Target) -> bool:
        return True

    def space(self, problem: Ragged, target: Target) -> Space:
        """``reserved`` shared memory is not used: some GPUs do not have as much."""
        fits = Constraint("a block has less memory", lambda v: int(v["reserved"]) <= target.l1)
        reserved = 128 << 10 if problem.factor == 3 else 0
        return Space(self.name, (Knob("reserved", (reserved,), reserved),), (fits,))

    def sizes(self, problem: Ragged, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        return {"workspace_bytes": -(-4 * problem.rows // CACHE_LINE) * CACHE_LINE}

    def counts(self, problem: Ragged, target: Target, values: Mapping[str, Value]) -> Counts:
        return Counts({}, {})

    def lower(self, problem: Ragged, target: Target, values: Mapping[str, Value]) -> GpuProgram:
        kernels = {"factors": _kernel(_factors, problem), "scale": _kernel(_scale, problem)}

        def body(tensors: Tensors, launch: Launch) -> None:
            names = ("x", "lengths", "workspace", "y", "served")
            passed = {f"{name}_ptr": tensors[name] for name in names}
            passed |= {name: tensors.sizes[name] for name in ("capacity", "rows")}
            rows = tensors.sizes["rows"]
            launch("factors", (rows,), WARP, passed)
            launch("scale", (rows,), WARP, passed, int(values["reserved"]), True)

        sizes = self.sizes(problem, target, values)
        return gpu_program(RAGGED.arguments(problem), sizes, kernels, body)


def _kernel(body: Callable[[Any, Any, Any, Ragged], None], problem: Ragged) -> Any:
    """Return a kernel: ``body(buffers, row, thread, problem)`` emits its statements."""
    from tvm.script import tirx as T
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    dtypes = {"x": problem.dtype, "lengths": "int32", "workspace": "float32"}
    dtypes |= {"y": problem.dtype, "served": "int32"}
    with IRBuilder() as ir:
        with builder.prim_func():
            builder.func_name("kernel")
            pointers = {n: builder.arg(f"{n}_ptr", T.handle(kind)) for n, kind in dtypes.items()}
            capacity, _ = builder.arg("capacity", T.int64()), builder.arg("rows", T.int64())
            T.device_entry()
            row, thread = T.cta_id([1 << 30]), T.thread_id([WARP])
            buffers = {
                n: T.decl_buffer((T.int64(_ELEMENTS),), dtypes[n], data=p)
                for n, p in pointers.items()
            }
            body({**buffers, "capacity": capacity}, T.cast(row, "int64"), thread, problem)
        return ir.get()


def _factors(buffers: Any, row: Any, thread: Any, problem: Ragged) -> None:
    from tvm.script import tirx as T

    with T.If(thread == 0), T.Then():
        T.buffer_store(buffers["workspace"], T.float32(problem.factor), [row])


def _scale(buffers: Any, row: Any, thread: Any, problem: Ragged) -> None:
    from tvm.script import tirx as T

    from wattune.schedules.cuda import ptx

    ptx.wait_for_previous()
    x, y, capacity = buffers["x"], buffers["y"], buffers["capacity"]
    for i, end in enumerate(problem.sizes.values()):
        T.buffer_store(buffers["served"], T.int32(end), [row * 2 + i])
    with T.serial(T.cast(T.truncdiv(capacity + WARP - 1, WARP), "int32")) as step:
        column = T.cast(step * WARP + thread, "int64")
        with T.If(column < capacity), T.Then():
            at = row * capacity + column
            scaled = buffers["workspace"][row] * T.cast(x[at], "float32")
            kept = T.Select(column < buffers["lengths"][row], scaled, T.float32(0))
            T.buffer_store(y, T.cast(kept, problem.dtype), [at])


RAGGED = RaggedOperator()
HOPPER = Target.parse("cuda:sm_90a")
TEMPLATES: tuple[Template, ...] = (RaggedTemplate(),)

# A grid of buckets; a variant of the same tensors; one of another dtype.
PROBLEMS = (
    Ragged(2, 64),
    Ragged(8, 64),
    Ragged(8, 512),
    Ragged(8, 64, factor=0.5),
    Ragged(8, 64, dtype="float16"),
)


@cache
def registered() -> None:
    """Make the template known; the operator is for as long as a library is compiled."""
    register_module("cuda", "tests.compiler.toy_gpu")
    register_module("cpu", "tests.compiler.toy_gpu_host")


def export_toy(
    path: Path,
    problems: tuple[Ragged, ...] = PROBLEMS,
    target: Target = HOPPER,
    also: tuple[str, ...] = (),
    ask: bool = False,
) -> Path:
    """Export a library of the operator, with whatever compiles the kernels' source.

    ``ask``: as `compile` does it, which asks whether the kernels were verified.
    """
    registered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ops._OPERATORS, "ragged", RAGGED)
        if ask:
            return compile(problems, target, also=also).export(path)
        return build(choose(problems, target, None, "latency", None), target, also).export(path)


def expected(x: NDArray[Any], lengths: NDArray[Any], factor: float = 2.0) -> NDArray[Any]:
    """Compute y."""
    kept = np.arange(x.shape[1]) < lengths[:, None]
    return np.where(kept, factor * x, 0).astype(x.dtype)
