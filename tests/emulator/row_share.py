"""A made-up operator and its CUDA kernel: what share of its row's sum each value has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tests.compiler.toy import ToyOperator

from wattune.ops import Argument, Problem, Tolerance
from wattune.ops.operator import Array
from wattune.schedules.cuda.base import CudaTemplate
from wattune.schedules.cuda.program import GpuProgram, Launch, gpu_program
from wattune.schedules.program import Tensors
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Template

BLOCK = 128


@dataclass(frozen=True)
class RowShare(Problem):
    """share[r, c] = x[r, c] / sum(x[r, :])."""

    operator: ClassVar[str] = "row_share"
    runtime: ClassVar[tuple[str, ...]] = ("rows",)

    rows: int
    columns: int


class RowShareOperator(ToyOperator[RowShare]):
    name = "row_share"
    summary = "share[r, c] = x[r, c] / sum(x[r, :])"
    problem = RowShare

    @property
    def signature(self) -> tuple[str, ...]:
        return ("x", "share")

    def arguments(self, problem: RowShare) -> tuple[Argument, ...]:
        shape = ("rows", problem.columns)
        return (
            Argument("x", shape, "float32", "input"),
            Argument("share", shape, "float32", "output"),
        )

    def make_inputs(self, problem: RowShare, rng: np.random.Generator) -> dict[str, Array]:
        x = rng.uniform(1, 2, (problem.rows, problem.columns)).astype(np.float32)
        return {"x": x}

    def reference(self, problem: RowShare, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64)
        return {"share": x / x.sum(axis=1, keepdims=True)}

    def tolerance(self, problem: RowShare, output: str) -> Tolerance:
        return Tolerance(1e-5, 0.0, "a sum of positive float32 in another order")


class RowShareTemplate(CudaTemplate):
    """One block a row: the row comes by cp.async, sums meet by shuffles and shared memory."""

    name = "row_share"
    operator = "row_share"

    def applies(self, problem: RowShare, target: Target) -> bool:
        return problem.columns % 4 == 0

    def space(self, problem: RowShare, target: Target) -> Space:
        return Space(self.name, ())

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        return Counts({}, {})

    def lower(self, problem: RowShare, target: Target, values: Mapping[str, Value]) -> GpuProgram:
        def body(tensors: Tensors, launch: Launch) -> None:
            launch(
                "share",
                (tensors.sizes["rows"],),
                BLOCK,
                {
                    "x_ptr": tensors["x"],
                    "share_ptr": tensors["share"],
                    "rows": tensors.sizes["rows"],
                },
                shared=problem.columns * 4,
            )

        kernels = {"share": share_kernel(problem.columns)}
        return gpu_program(ROW_SHARE.arguments(problem), {}, kernels, body)


def share_kernel(columns: int) -> Any:
    from tvm.script import tirx as T

    warps, chunks = BLOCK // 32, columns // 4

    @T.prim_func  # type: ignore[untyped-decorator]
    def kernel(x_ptr: T.handle, share_ptr: T.handle) -> None:
        rows = T.int32()
        x = T.match_buffer(x_ptr, (rows, columns), "float32")
        share = T.match_buffer(share_ptr, (rows, columns), "float32")
        T.device_entry()
        row = T.cta_id([rows])
        tid = T.thread_id([BLOCK])
        values = T.alloc_buffer((columns,), "float32", scope="shared.dyn", align=16)
        sums = T.alloc_shared((warps,), "float32")
        total = T.alloc_local((1,), "float32")
        for i in T.serial((chunks + BLOCK - 1) // BLOCK):
            if i * BLOCK + tid < chunks:
                T.ptx["cp.async.cg.shared.global"](
                    values.ptr_to([(i * BLOCK + tid) * 4]),
                    x.ptr_to([row, (i * BLOCK + tid) * 4]),
                    16,
                )
        T.ptx["cp.async.commit_group"]()
        T.ptx["cp.async.wait_group"](0)
        T.cuda.cta_sync()
        total[0] = T.float32(0)
        for i in T.serial((columns + BLOCK - 1) // BLOCK):
            if i * BLOCK + tid < columns:
                total[0] = total[0] + values[i * BLOCK + tid]
        for j in T.unroll(5):
            total[0] = total[0] + T.tvm_warp_shuffle_xor(
                T.uint32(0xFFFFFFFF), total[0], 1 << j, 32, 32
            )
        if tid % 32 == 0:
            sums[tid // 32] = total[0]
        T.cuda.cta_sync()
        total[0] = T.float32(0)
        for w in T.unroll(warps):
            total[0] = total[0] + sums[w]
        for i in T.serial((columns + BLOCK - 1) // BLOCK):
            if i * BLOCK + tid < columns:
                # The neighbour's copy, so that a missing barrier shows.
                share[row, columns - 1 - i * BLOCK - tid] = (
                    values[columns - 1 - i * BLOCK - tid] / total[0]
                )

    return kernel


ROW_SHARE = RowShareOperator()
TEMPLATES: tuple[Template, ...] = (RowShareTemplate(),)
