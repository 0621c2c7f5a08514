"""A plain CUDA template whose knob makes its kernels fail in every way that a candidate can.

Build workers import it by its bare name, from a folder on the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.ops.decode_attention import DECODE_ATTENTION, DecodeAttention
from wattune.schedules.cuda.base import CudaTemplate
from wattune.schedules.cuda.kernel import Block, gpu_kernel, passed
from wattune.schedules.cuda.program import GpuProgram, Launch, gpu_program
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

FAULTS = ("none", "build", "crash", "hang", "wrong", "unwritten", "overrun", "overwrite")
_TENSORS = {"q": "float32", "k_cache": "float32", "v_cache": "float32", "seq_lens": "int32"}


class FaultyGpu(CudaTemplate):
    """Dense float32 attention of one query token: a block a head, a thread a channel."""

    name = "faulty_gpu"
    operator = "decode_attention"

    def applies(self, problem: DecodeAttention, target: Target) -> bool:
        plain = DecodeAttention(
            *(problem.batch, problem.context, problem.query_heads, problem.kv_heads),
            problem.head_dim,
            dtype="float32",
        )
        return problem == plain

    def space(self, problem: DecodeAttention, target: Target) -> Space:
        # A tune would wait long for each that hangs: only problems of one request do.
        faults = tuple(f for f in FAULTS if f != "hang" or problem.batch == 1)
        return Space(self.name, (Knob("fault", faults, "none"), Knob("repeat", (1, 2, 3), 1)))

    def sizes(
        self, problem: DecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        return {"workspace_bytes": 64}

    def counts(
        self, problem: DecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        return Counts({"memory": 1e6}, {})

    def lower(
        self, problem: DecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> GpuProgram:
        fault = str(values["fault"])
        if fault == "build":
            raise RuntimeError("a bug in a template")
        kernel = gpu_kernel(
            "attend",
            {**_TENSORS, "out": "float32"},
            ("capacity",),
            problem.head_dim,
            lambda block: _body(block, problem, fault),
        )

        def host(tensors: Tensors, launch: Launch) -> None:
            launch(
                "attend",
                (problem.query_heads, tensors.sizes["batch"]),
                problem.head_dim,
                passed(tensors, (*_TENSORS, "out"), capacity=tensors.sizes["capacity"]),
            )

        sizes = self.sizes(problem, target, values)
        return gpu_program(DECODE_ATTENTION.arguments(problem), sizes, {"attend": kernel}, host)


def _body(block: Block, problem: DecodeAttention, fault: str) -> None:
    from tvm.script import tirx as T

    dim, heads = problem.head_dim, problem.query_heads
    views = {name: block.view(name, dtype) for name, dtype in _TENSORS.items()}
    out, capacity = block.view("out", "float32"), block.integers["capacity"]
    row = T.cast(block.y, "int64") * heads + block.x
    head = T.cast(block.y, "int64") * problem.kv_heads + block.x // problem.group
    length = T.cast(views["seq_lens"][T.cast(block.y, "int64")], "int64")
    here = row * dim + block.thread
    sums = T.alloc_local((4,), "float32")
    top, total, value, score = range(4)

    def put(at: int, number: Any) -> None:
        T.buffer_store(sums, number, [at])

    def dot(position: Any) -> None:
        put(score, T.float32(0))
        with T.serial(dim) as i:
            key = views["k_cache"][(head * capacity + position) * dim + i]
            put(score, sums[score] + views["q"][row * dim + i] * key)
        put(score, sums[score] * T.float32(problem.scale))

    put(top, T.float32(-1e30))
    put(total, T.float32(0))
    put(value, T.float32(0))
    with T.serial(length) as position:
        dot(position)
        put(top, T.max(sums[top], sums[score]))
    with T.serial(length) as position:
        dot(position)
        weight = T.exp(sums[score] - sums[top])
        put(total, sums[total] + weight)
        there = (head * capacity + position) * dim + block.thread
        put(value, sums[value] + weight * views["v_cache"][there])
    with T.If(length == 0), T.Then():
        put(total, T.float32(1))
    result = sums[value] / sums[total]
    if fault == "wrong":
        result = result + T.float32(1)
    if fault == "crash":
        here = here + (1 << 44)
    if fault == "hang":
        with T.serial(T.int64(1 << 60)):
            put(total, sums[total] * T.float32(0.5) + T.float32(1))
            T.buffer_store(out, sums[total], [here])
    if fault == "overwrite":
        T.buffer_store(views["v_cache"], T.float32(7), [head * capacity * dim])
    with T.If(block.x < (heads - 1 if fault == "unwritten" else heads)), T.Then():
        T.buffer_store(out, result, [here])
    if fault == "overrun":
        with T.If(row == 0), T.Then():
            T.buffer_store(out, T.float32(7), [here + problem.batch * heads * dim])


TEMPLATES = (FaultyGpu(),)
