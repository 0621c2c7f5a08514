"""A plain template whose knob makes its kernels fail in every way that a candidate can.

Build workers import it by its bare name, from a folder on the path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from wattune.ops.ternary_gemm import TERNARY_GEMM, TernaryGemm
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

FAULTS = (
    "none",
    "slow",
    "lower_raises",
    "lower_hangs",
    "compiler_dies",
    "undefined_symbol",
    "crash",
    "hang",
    "wrong",
    "unwritten",
    "overrun",
    "overread",
    "overwrite",
    "refuse",
)


class Faulty(Template):
    """One byte a weight, w + 1; int8 activations, int32 sums."""

    name = "faulty"
    operator = "ternary_gemm"

    def applies(self, problem: TernaryGemm, target: Target) -> bool:
        return False  # only candidates that name it

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        return Space(self.name, (Knob("fault", FAULTS, "none"), Knob("repeat", (1, 2, 3), 1)))

    def layout(self, problem: TernaryGemm, values: Mapping[str, Value]) -> Layout:
        return Layout("bytes")

    def sizes(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        # One byte more than the kernel was compiled for: it refuses the call.
        workspace = 65 if values["fault"] == "refuse" else 64
        return {
            "weight_bytes": problem.out_features * problem.in_features,
            "workspace_bytes": workspace,
        }

    def lower(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Any:
        fault = values["fault"]
        if fault == "lower_raises":
            raise RuntimeError("a bug in a template")
        if fault == "lower_hangs":
            time.sleep(3600)
        sizes = {**self.sizes(problem, target, values), "workspace_bytes": 64}
        function = tensor_program(
            TERNARY_GEMM.arguments(problem), sizes, lambda tensors: _kernel(problem, fault, tensors)
        )
        if fault == "compiler_dies":
            os.abort()
        return function

    def pack(self, problem: TernaryGemm, values: Mapping[str, Value]) -> dict[str, Any]:
        weight = next(a for a in TERNARY_GEMM.arguments(problem) if a.name == "weight")
        assert weight.source is not None
        n, k = problem.out_features, problem.in_features

        def body(tensors: Tensors) -> None:
            from tvm.script import tirx as T

            with T.grid(n, k) as (i, j):
                byte = T.cast(tensors["weights"][i, j] + T.int8(1), "uint8")
                T.buffer_store(tensors["weight"], byte, [i * k + j])

        return {"weight": tensor_program((weight.source, weight), {"weight_bytes": n * k}, body)}

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        return Counts({}, {})


def _kernel(problem: TernaryGemm, fault: Value, tensors: Tensors) -> None:
    from tvm.script import tirx as T

    x, weight, y = tensors["x"], tensors["weight"], tensors["y"]
    n, k, tokens = problem.out_features, problem.in_features, tensors.sizes["tokens"]
    if fault == "undefined_symbol":
        T.evaluate(T.call_extern("int32", "no_such_function"))
    if fault == "crash":
        nowhere = T.reinterpret(T.uint64(8), dtype="handle")
        T.evaluate(T.call_extern("handle", "memset", nowhere, 0, T.uint64(64)))
    if fault == "hang":
        T.evaluate(T.call_extern("int32", "pause"))
    if fault == "slow":
        T.evaluate(T.call_extern("int32", "usleep", T.uint32(2000)))
    if fault == "overwrite":
        T.buffer_store(weight, T.uint8(7), [n * k - 1])
    if fault == "overread":
        far = T.cast(weight[n * k + 4096], "int32")
        T.buffer_store(tensors["workspace"], T.cast(far, "uint8"), [0])
    rows = n - 1 if fault == "unwritten" else n
    with T.serial(tokens) as t, T.serial(rows) as i:
        total = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(total, T.int32(0), [0])
        with T.serial(k) as j:
            code = T.cast(weight[i * k + j], "int32") - 1
            T.buffer_store(total, total[0] + code * T.cast(x[t, j], "int32"), [0])
        wrong = T.cast(i == 5, "int32") if fault == "wrong" else T.int32(0)
        T.buffer_store(y, total[0] + wrong, [t, i])
    if fault == "overrun":
        T.buffer_store(y, T.int32(1), [tokens, 0])


TEMPLATES = (Faulty(),)
