"""Templates for any LLVM target: no intrinsics, only 32-bit vector arithmetic.

    for block, group in rows:
        sums[token_block] = 0                                    # 16 lanes of int32: 16 rows
        for step, digit d, column c of four:
            code = digit d of byte c of weight[block, step, group]
            sums[t] += code * q[t, column]
        y[tokens, 16 rows] = scaled(sums)

The blob is read as little-endian 32-bit lanes, one row a lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import VectorTemplate, quantize_tokens
from wattune.schedules.cpu.ternary_gemm.layout import QUAD, VECTOR, VectorLayout
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

I32 = "int32x16"


class Portable(VectorTemplate):
    """What the templates of both formats share."""

    features = ()

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        """Knobs: interleave, unrolling, token block, parallel grain."""
        token_blocks = tuple(t for t in (1, 2, 4, 8) if t <= problem.tokens)
        knobs = (
            Knob("groups", (1, 2, 4, 8), 4, layout=True),
            Knob("k_unroll", (1, 2, 4), 1),
            Knob("token_block", token_blocks, max(t for t in token_blocks if t <= 4)),
            Knob("grain", (1, 2, 4, 8), 1),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        return Kernel(
            problem=problem,
            threads=target.threads,
            weight=self.weight(problem, values),
            workspace=self.workspace(problem, target, values),
            k_unroll=int(values["k_unroll"]),
            token_block=int(values["token_block"]),
            grain=int(values["grain"]),
        ).emit

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does: four operations a weight and token block, one a product."""
        weight = self.weight(problem, values)
        block = int(values["token_block"])
        blocks = -(-problem.tokens // block)
        codes = weight.bytes / VECTOR * weight.columns * blocks
        return Counts(
            bytes={
                "memory": float(weight.bytes),
                "l2": float(weight.bytes * blocks + problem.tokens * weight.padded_columns),
                "l1": codes * block * QUAD,
            },
            operations={"alu": codes * (2 + 2 * block)},
            tiles={"blocks": weight.blocks, "token_blocks": blocks, "steps": weight.steps},
            parallelism=-(-weight.blocks // int(values["grain"])),
            registers=block + 2.0,
            code=float(int(values["k_unroll"]) * weight.columns * (2 + 2 * block)),
        )


class PortableI2(Portable):
    """Two bits a weight."""

    name = "portable_i2"
    format = "i2"


class PortableT5(Portable):
    """Five base-3 digits a byte."""

    name = "portable_t5"
    format = "t5"


@dataclass(frozen=True)
class Kernel:
    """Emits one portable kernel."""

    problem: TernaryGemm
    threads: int
    weight: VectorLayout
    workspace: Workspace
    k_unroll: int
    token_block: int
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Quantise all tokens, then multiply 16 rows at a time."""
        columns = self.weight.padded_columns
        quantize_tokens(self.problem, self.workspace, columns, self.threads, tensors)
        tasks = -(-self.weight.blocks // self.grain)
        loop = T.parallel if self.threads > 1 else T.serial
        tokens = tensors.sizes["tokens"]
        count = T.cast((tokens + self.token_block - 1) // self.token_block, "int32")
        with (
            loop(tasks) as task,
            T.serial(self.grain) as inner,
            T.serial(self.weight.groups) as group,
        ):
            block = task * self.grain + inner
            with T.If(block < self.weight.blocks), T.Then(), T.serial(count) as at:
                self._rows(tensors, block, group, at * self.token_block)

    def _rows(self, tensors: Tensors, block: Any, group: Any, first: Any) -> None:
        """Multiply 16 rows with one block of tokens."""
        sums = vector.Registers(self.token_block, "int32")
        for t in range(self.token_block):
            sums.store(t * vector.LANES, vector.splat(T.int32(0)))
        steps = self.weight.steps
        with T.serial(steps // self.k_unroll) as step:
            for k in range(self.k_unroll):
                self._step(tensors, sums, block, group, step * self.k_unroll + k, first)
        for k in range(steps // self.k_unroll * self.k_unroll, steps):
            self._step(tensors, sums, block, group, k, first)
        row = (block * self.weight.groups + group) * vector.LANES
        storer = Storer(self.problem, self.workspace)
        for t in range(self.token_block):
            with T.If(first + t < tensors.sizes["tokens"]), T.Then():
                storer.emit(
                    sums.load(t * vector.LANES, I32),
                    tensors["workspace"],
                    tensors.get("weight_scale"),
                    tensors["y"],
                    first + t,
                    row,
                )

    def _step(
        self, tensors: Tensors, sums: Any, block: Any, group: Any, step: Any, first: Any
    ) -> None:
        """Add the columns of one vector."""
        weight, work = self.weight, tensors["workspace"]
        at = block * weight.block_bytes + (step * weight.groups + group) * VECTOR
        lanes = vector.load_as(tensors["weight"], at, "int32", vector.LANES)
        for c in range(QUAD):
            for d in range(weight.digits):
                code = self._digit(lanes, c, d)
                for t in range(self.token_block):
                    row = (first + t) * self.workspace.stride
                    q = T.reinterpret("int8", work[row + step * weight.columns + d * QUAD + c])
                    slot = t * vector.LANES
                    product = code * vector.splat(T.cast(q, "int32"))
                    sums.store(slot, sums.load(slot, I32) + product)

    def _digit(self, lanes: Any, column: int, digit: int) -> Any:
        """Return one digit of one byte of each lane."""
        if self.weight.radix == 4:
            shifted = T.shift_right(lanes, vector.splat(T.int32(8 * column + 2 * digit)))
            return T.bitwise_and(shifted, vector.splat(T.int32(3)))
        shifted = T.shift_right(lanes, vector.splat(T.int32(8 * column)))
        byte = T.bitwise_and(shifted, vector.splat(T.int32(255)))
        power = vector.splat(T.int32(self.weight.radix**digit))
        return T.truncmod(T.truncdiv(byte, power), vector.splat(T.int32(self.weight.radix)))
