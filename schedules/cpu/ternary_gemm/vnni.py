"""AVX-512 VNNI templates: decode 2-bit or base-3 weights in registers, multiply with vpdpbusd.

for block in parallel(row blocks):
    for tokens in blocks of token_block:
        sums[token_block, groups] = 0
        for step in columns:                  # unrolled by k_unroll, prefetched
            for digit in digits of a vector:
                w = decode(weight[block, step, group], digit)          # groups registers
                sums[t, group] += dot(w, q[t, 4 columns])              # token_block x groups
        y[tokens, block] = scaled(sums)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import VectorTemplate, quantize_tokens
from wattune.schedules.cpu.ternary_gemm.decode import decode_i2, decode_t5
from wattune.schedules.cpu.ternary_gemm.layout import QUAD, VECTOR, VectorLayout
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

I32 = "int32x16"
AVX512_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
REGISTERS = 32


class Vnni(VectorTemplate):
    """What the templates of both formats share; a subclass decodes its vectors."""

    one_token: ClassVar[dict[str, int]]

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        """Knobs: interleave, accumulators, unrolling, prefetch, token block, parallel grain."""
        many = problem.tokens > 1
        sizes = (1, 2, 4, 6, 8, 12, 16, 24)
        token_blocks = tuple(t for t in sizes if t <= problem.tokens)
        one = self.one_token
        knobs = (
            Knob("groups", (1, 2, 4, 8), one["groups"], layout=True),
            Knob("row_groups", (1, 2, 4, 8), 2 if many else one["groups"]),
            Knob("accumulators", (1, 2, 4), 1 if many else one["accumulators"]),
            Knob("k_unroll", (1, 2, 4, 8), 1),
            Knob("prefetch", (0, 512, 1024, 2048, 4096, 8192), 0 if many else one["prefetch"]),
            Knob("token_block", token_blocks, max(t for t in token_blocks if t <= 8)),
            Knob("grain", (1, 2, 4, 8), 1),
        )
        constraints = (
            Constraint(
                "row_groups must not exceed groups",
                lambda v: int(v["row_groups"]) <= int(v["groups"]),
            ),
            Constraint(
                "row_groups * (token_block * accumulators + 1) must fit 30 vector registers",
                lambda v: (
                    int(v["row_groups"]) * (int(v["token_block"]) * int(v["accumulators"]) + 1)
                    <= REGISTERS - 2
                ),
            ),
            Constraint(
                "4 accumulators keep digits unshifted: columns must be < 2^18",
                lambda v: int(v["accumulators"]) < 4 or problem.in_features < 1 << 18,
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
            decode=self.decode,
            accumulators=int(values["accumulators"]),
            k_unroll=int(values["k_unroll"]),
            prefetch=int(values["prefetch"]),
            token_block=int(values["token_block"]),
            grain=int(values["grain"]),
            row_groups=int(values["row_groups"]),
        ).emit

    def decode(self, code: Any, shifted: bool) -> list[Any]:
        """Return the codes (w + 1) of each digit of a vector of bytes.

        Not ``shifted``: digit i < 4 is left in its place, 4^i times too large.
        """
        raise NotImplementedError

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does."""
        weight = self.weight(problem, values)
        blocks = -(-problem.tokens // int(values["token_block"]))
        vectors = weight.bytes / VECTOR
        dots = vectors * weight.digits * blocks * int(values["token_block"])
        groups, accumulators = int(values["row_groups"]), int(values["accumulators"])
        decode = {4: 4 if accumulators == 4 else 7, 5: 11 if accumulators == 4 else 14}
        q_bytes = float(problem.tokens * weight.padded_columns)
        return Counts(
            bytes={
                "memory": float(weight.bytes),
                "l2": weight.bytes * blocks + q_bytes * weight.blocks,
                "l1": dots * QUAD / groups + weight.bytes * blocks,
            },
            operations={"dot": dots, "alu": vectors * blocks * decode[weight.digits]},
            tiles={"blocks": weight.blocks, "token_blocks": blocks, "steps": weight.steps},
            parallelism=-(-weight.blocks // int(values["grain"])),
            registers=groups * accumulators * int(values["token_block"]) + groups + 1.0,
            code=float(
                int(values["k_unroll"]) * groups * weight.digits * (int(values["token_block"]) + 1)
            ),
        )


class VnniI2(Vnni):
    """Two bits a weight: mask the fields, no table."""

    name = "vnni_i2"
    format = "i2"
    features = AVX512_VNNI
    one_token: ClassVar[dict[str, int]] = {"groups": 4, "accumulators": 4, "prefetch": 4096}

    def decode(self, code: Any, shifted: bool) -> list[Any]:
        """Mask the four 2-bit fields."""
        return decode_i2(code, shifted)


class VnniT5(Vnni):
    """Five base-3 digits a byte (1.6 bits a weight): four by a table of 81, the fifth by range."""

    name = "vnni_t5"
    format = "t5"
    features = (*AVX512_VNNI, "avx512vbmi")
    one_token: ClassVar[dict[str, int]] = {"groups": 8, "accumulators": 2, "prefetch": 8192}

    def decode(self, code: Any, shifted: bool) -> list[Any]:
        """Look four digits up; the fifth follows from the range."""
        return decode_t5(code, shifted)


@dataclass(frozen=True)
class Kernel:
    """Emits one VNNI kernel."""

    problem: TernaryGemm
    threads: int
    weight: VectorLayout
    workspace: Workspace
    decode: Callable[[Any, bool], list[Any]]
    accumulators: int
    k_unroll: int
    prefetch: int
    token_block: int
    grain: int
    row_groups: int

    def emit(self, tensors: Tensors) -> None:
        """Quantise all tokens, then multiply block by block."""
        tokens = tensors.sizes["tokens"]
        columns = self.weight.padded_columns
        quantize_tokens(self.problem, self.workspace, columns, self.threads, tensors)
        parallel = T.parallel if self.threads > 1 else T.serial
        tasks = -(-self.weight.blocks // self.grain)
        with parallel(tasks) as task, T.serial(self.grain) as inner:
            block = task * self.grain + inner
            if self.weight.blocks % self.grain:
                with T.If(block < self.weight.blocks), T.Then():
                    self._block(tensors, tokens, block)
            else:
                self._block(tensors, tokens, block)

    def _block(self, tensors: Tensors, tokens: Any, block: Any) -> None:
        """Multiply one block of rows with all tokens."""
        count = T.cast((tokens + self.token_block - 1) // self.token_block, "int32")
        parts = self.weight.groups // self.row_groups
        with T.serial(parts) as part, T.serial(count) as at:
            first = at * self.token_block
            group = part * self.row_groups
            sums = T.alloc_buffer((self._sums() * vector.LANES,), "int32", scope="local")
            for i in range(self._sums()):
                vector.store(sums, [i * vector.LANES], vector.splat(T.int32(0)))
            steps = self.weight.steps
            with T.serial(steps // self.k_unroll) as step:
                for k in range(self.k_unroll):
                    self._step(tensors, sums, block, group, step * self.k_unroll + k, first)
            for k in range(steps // self.k_unroll * self.k_unroll, steps):
                self._step(tensors, sums, block, group, k, first)
            self._store(tensors, sums, block, group, tokens, first)

    def _sums(self) -> int:
        """Count the accumulating registers."""
        return self.token_block * self.row_groups * self.accumulators

    def _slot(self, token: int, group: int, chain: int) -> int:
        return ((token * self.row_groups + group) * self.accumulators + chain) * vector.LANES

    def _step(
        self, tensors: Tensors, sums: Any, block: Any, group: Any, step: Any, first: Any
    ) -> None:
        """Add one vector of every group times the columns it covers."""
        weight = self.weight
        work = tensors["workspace"]
        at = block * weight.block_bytes + (step * weight.groups + group) * VECTOR
        digits = []
        for g in range(self.row_groups):
            if self.prefetch:
                vector.prefetch(tensors["weight"], at + g * VECTOR + self.prefetch)
            code = vector.load_bytes(tensors["weight"], at + g * VECTOR)
            digits.append(self.decode(code, self.accumulators < 4))
        for d in range(weight.digits):
            # A fifth digit lies where the fourth does: in the top bits.
            chain = min(d, 3) if self.accumulators == 4 else d % self.accumulators
            for t in range(self.token_block):
                row = (first + t) * self.workspace.stride
                q = vector.splat_quad(work, row + step * weight.columns + d * QUAD)
                for g in range(self.row_groups):
                    slot = self._slot(t, g, chain)
                    codes = T.reinterpret("int8x64", digits[g][d])
                    vector.store(sums, [slot], vector.dot_u8s8(sums.vload([slot], I32), codes, q))

    def _store(
        self, tensors: Tensors, sums: Any, block: Any, group: Any, tokens: Any, first: Any
    ) -> None:
        """Combine the accumulators and store the rows of the tokens that exist."""
        storer = Storer(self.problem, self.workspace)
        for t in range(self.token_block):
            with T.If(first + t < tokens), T.Then():
                for g in range(self.row_groups):
                    storer.emit(
                        self._total(sums, t, g),
                        tensors["workspace"],
                        tensors.get("weight_scale"),
                        tensors["y"],
                        first + t,
                        (block * self.weight.groups + group + g) * vector.LANES,
                    )

    def _total(self, sums: Any, token: int, group: int) -> Any:
        """Add the accumulators of one token and group; digits left in place are shifted here."""
        total = sums.vload([self._slot(token, group, 0)], I32)
        for chain in range(1, self.accumulators):
            part = sums.vload([self._slot(token, group, chain)], I32)
            if self.accumulators == 4:
                part = T.shift_right(part, vector.splat(T.int32(2 * chain)))
            total = total + part
        return total
