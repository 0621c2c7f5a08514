"""What the templates share that decode weights in vector registers: VNNI and AVX2."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import VectorTemplate
from wattune.schedules.cpu.ternary_gemm.decode import Digits
from wattune.schedules.cpu.ternary_gemm.dot_kernel import Arithmetic, Kernel
from wattune.schedules.cpu.ternary_gemm.layout import QUAD, VECTOR
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

TOKEN_BLOCKS = (1, 2, 4, 6, 8, 12, 16, 24)
# Digits left in their place are up to 64 times too large: their int32 sums allow fewer columns.
COLUMNS_IN_PLACE = 1 << 18


class DotTemplate(VectorTemplate):
    """A template of the loop nest in `dot_kernel`; a subclass knows its registers."""

    # Vector registers of the instruction set, less what the inner loop needs besides sums.
    registers: ClassVar[int]

    @abstractmethod
    def arithmetic(self, target: Target) -> Arithmetic:
        """Return how codes and activations are multiplied."""

    @abstractmethod
    def digits(self, accumulators: int, target: Target) -> Digits:
        """Return how digits are decoded for this many accumulators of a sum."""

    @abstractmethod
    def defaults(self, problem: TernaryGemm, target: Target) -> dict[str, int]:
        """Return the defaults of the knobs but ``token_block`` and ``grain``."""

    def accumulators(self, target: Target) -> tuple[int, ...]:
        """Return how many accumulators a sum can have."""
        return (1, 2, 4)

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        """Knobs: interleave, accumulators, unrolling, prefetch, token block, parallel grain."""
        default = self.defaults(problem, target)
        parts = vector.LANES // self.arithmetic(target).lanes
        accumulators = self.accumulators(target)
        token_blocks = tuple(t for t in TOKEN_BLOCKS if t <= problem.tokens)

        def registers(values: Mapping[str, Value]) -> int:
            sums = int(values["token_block"]) * int(values["accumulators"])
            return parts * int(values["row_groups"]) * (sums + 1)

        knobs = (
            Knob("groups", (1, 2, 4, 8), default["groups"], layout=True),
            Knob("row_groups", (1, 2, 4, 8), default["row_groups"]),
            Knob("accumulators", accumulators, default["accumulators"]),
            Knob("k_unroll", (1, 2, 4, 8), default["k_unroll"]),
            Knob("prefetch", (0, 512, 1024, 2048, 4096, 8192, 16384), default["prefetch"]),
            Knob(
                "token_block",
                token_blocks,
                max(t for t in token_blocks if t <= default["token_block"]),
            ),
            Knob("grain", (1, 2, 4, 8), 1),
        )
        in_place = [a for a in accumulators if any(self.digits(a, target).shift)]
        constraints = (
            Constraint(
                "row_groups must not exceed groups",
                lambda v: int(v["row_groups"]) <= int(v["groups"]),
            ),
            Constraint(
                f"{parts} * row_groups * (token_block * accumulators + 1) must fit "
                f"{self.registers} vector registers",
                lambda v: registers(v) <= self.registers,
            ),
            Constraint(
                f"{in_place} accumulators keep digits unshifted: columns must be < 2^18",
                lambda v: (
                    v["accumulators"] not in in_place or problem.in_features < COLUMNS_IN_PLACE
                ),
            ),
        )
        return Space(self.name, knobs, constraints)

    def body(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        return Kernel(
            problem=problem,
            threads=target.threads,
            weight=self.weight(problem, values),
            workspace=self.workspace(problem, target, values),
            arithmetic=self.arithmetic(target),
            digits=self.digits(int(values["accumulators"]), target),
            k_unroll=int(values["k_unroll"]),
            prefetch=int(values["prefetch"]),
            token_block=int(values["token_block"]),
            grain=int(values["grain"]),
            row_groups=int(values["row_groups"]),
        ).emit

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does, in instructions of this instruction set."""
        weight = self.weight(problem, values)
        token_block = int(values["token_block"])
        blocks = -(-problem.tokens // token_block)
        arithmetic = self.arithmetic(target)
        digits = self.digits(int(values["accumulators"]), target)
        vectors = weight.bytes / VECTOR * (vector.LANES // arithmetic.lanes)
        dots = vectors * weight.digits * blocks * token_block
        groups = int(values["row_groups"])
        q_bytes = float(problem.tokens * weight.padded_columns)
        # int16 totals take an addition a product, and two instructions a chain when they widen.
        alu = vectors * blocks * digits.operations
        if arithmetic.widen is not None:
            chains = digits.accumulators / digits.steps_in_int16()
            alu += dots + 2 * vectors * blocks * token_block * chains
        return Counts(
            bytes={
                "memory": float(weight.bytes),
                "l2": weight.bytes * blocks + q_bytes * weight.blocks,
                "l1": dots * QUAD / groups + weight.bytes * blocks,
            },
            operations={"dot": dots, "alu": alu},
            tiles={"blocks": weight.blocks, "token_blocks": blocks, "steps": weight.steps},
            parallelism=-(-weight.blocks // int(values["grain"])),
            registers=groups * digits.accumulators * token_block + groups + 1.0,
            code=float(int(values["k_unroll"]) * groups * weight.digits * (token_block + 1)),
        )
