"""AMX int8 templates: decode the weights of some rows into tiles, then multiply with all tokens.

for thread in parallel(threads):                        # each its share of the panels
    for panel of 16 * panel_groups rows:
        for columns in blocks of k_block:
            codes[group, column quad, 64] = decode(weight)           # ``ahead`` of their use
            for tokens in blocks of token_tiles tiles:
                for groups in blocks of group_tiles:
                    sums = 0, or those of the columns before
                    for 64 columns:
                        sums[t, g] += dot(q[t], codes[g])            # token_tiles x group_tiles
                    y[tokens, rows] = scaled(sums)                   # after the last columns

64 bytes of codes, 16 rows of the weight by 4 columns, are one row of a tile's right operand, so
16 of them are a tile as they lie; quantised tokens are rows of the left operand as they lie. The
result has tokens in rows, as y has.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import amx
from wattune.schedules.cpu.ternary_gemm.amx_kernel import Kernel
from wattune.schedules.cpu.ternary_gemm.amx_plan import Plan
from wattune.schedules.cpu.ternary_gemm.base import VectorTemplate
from wattune.schedules.cpu.ternary_gemm.decode import Digits, digits_i2, digits_t5
from wattune.schedules.cpu.ternary_gemm.layout import VECTOR
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

AMX_INT8 = ("amx_int8", "amx_tile", "avx512bw", "avx512f", "avx512vl")
# Below this a tile is mostly padding and decoding for vector registers is cheaper.
LEAST_TOKENS = 8


class Amx(VectorTemplate):
    """What the templates of both formats share; a subclass decodes its vectors."""

    groups: ClassVar[int]

    def applies(self, problem: TernaryGemm, target: Target) -> bool:
        """Say whether tiles pay off, besides what every vector template asks."""
        return problem.tokens >= LEAST_TOKENS and super().applies(problem, target)

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        """Knobs: interleave, rows of a panel, register block, columns of a panel, look-ahead."""
        columns = self.weight(problem, {"groups": self.groups}).padded_columns
        token_tiles = _up_to((1, 2, 4), -(-problem.tokens // amx.TILE_ROWS))
        panel_groups = _up_to((1, 2, 4, 8, 16), -(-problem.out_features // amx.TILE_ROWS))
        blocks = [512]
        while blocks[-1] < columns:
            blocks.append(2 * blocks[-1])
        # A panel is written once and read for every block of tokens: it must stay in L2, and by
        # default, with 4 groups, leave most of it to the tokens.
        fitting = [b for b in blocks if 4 * amx.TILE_ROWS * b <= target.l2 // 8]
        knobs = (
            Knob("groups", (1, 2, 4, 8), self.groups, layout=True),
            Knob("panel_groups", panel_groups, min(4, panel_groups[-1])),
            Knob("token_tiles", token_tiles, min(2, token_tiles[-1])),
            Knob("group_tiles", (1, 2, 4), min(2, panel_groups[-1])),
            Knob("k_block", tuple(blocks), max(fitting, default=blocks[0])),
            Knob("ahead", (0, 1, 2), 1),
            Knob("prefetch", (0, 1024, 4096, 8192), 4096),
        )
        constraints = (
            Constraint(
                "group_tiles must not exceed panel_groups",
                lambda v: int(v["group_tiles"]) <= int(v["panel_groups"]),
            ),
            Constraint(
                "sums, the operands held and one streamed operand must fit 8 tiles",
                lambda v: (
                    int(v["token_tiles"]) * int(v["group_tiles"])
                    + min(int(v["token_tiles"]), int(v["group_tiles"]))
                    < amx.TILES
                ),
            ),
            Constraint(
                f"a panel of 16 * panel_groups rows by k_block columns must fit L2, {target.l2} B",
                lambda v: self.plan(problem, target, v).panel_bytes <= target.l2,
            ),
        )
        return Space(self.name, knobs, constraints)

    def plan(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Plan:
        """Return the sizes of the loop nest."""
        return Plan(
            weight=self.weight(problem, values),
            tokens=problem.tokens,
            threads=target.threads,
            panel_groups=int(values["panel_groups"]),
            token_tiles=int(values["token_tiles"]),
            group_tiles=int(values["group_tiles"]),
            k_block=int(values["k_block"]),
        )

    def workspace(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Workspace:
        """Return the offsets of the workspace, with scratch for every thread."""
        return self.plan(problem, target, values).workspace

    def body(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        return Kernel(
            problem=problem,
            plan=self.plan(problem, target, values),
            decode=self.digits().decode,
            ahead=int(values["ahead"]),
            prefetch=int(values["prefetch"]),
        ).emit

    @abstractmethod
    def digits(self) -> Digits:
        """Return how vectors are decoded: all digits shifted, tiles have one scale."""

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does: a tile operation is one tdpbsud."""
        plan = self.plan(problem, target, values)
        weight = plan.weight
        vectors = plan.panels * plan.panel_groups * weight.steps
        tokens = float(plan.token_blocks * plan.token_block * plan.columns)
        # The operands of a block of columns stay in L1 between register blocks, or come from L2.
        block = plan.panel_bytes + plan.token_block * plan.block_tiles * amx.ROW_BYTES
        operands = "l1" if block <= target.l1 else "l2"
        moved = {
            "memory": float(weight.bytes),
            "l2": weight.bytes + tokens * plan.panels,
            "l1": float(vectors * VECTOR * (1 + weight.digits)),
        }
        moved[operands] += float(plan.loads * amx.TILE_BYTES)
        waiting = plan.sum_tiles if plan.k_blocks > 1 else 0
        moved["l1"] += 2.0 * waiting * plan.panels * (plan.k_blocks - 1) * amx.TILE_BYTES
        return Counts(
            bytes=moved,
            operations={
                "tile": float(plan.dots),
                "alu": float(vectors * self.digits().operations),
            },
            tiles={
                "panels": plan.panels,
                "token_blocks": plan.token_blocks,
                "k_blocks": plan.k_blocks,
                "rows": plan.rows,
            },
            parallelism=plan.panels,
            registers=float(plan.sums + plan.token_tiles + plan.group_tiles),
            code=float(plan.sums + plan.token_tiles + plan.group_tiles),
        )


def _up_to(values: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the values below ``most`` and the first that reaches it."""
    below = tuple(v for v in values if v < most)
    return values[: len(below) + 1]


class AmxI2(Amx):
    """Two bits a weight: mask the fields, no table."""

    name = "amx_i2"
    format = "i2"
    features = AMX_INT8
    groups = 4

    def digits(self) -> Digits:
        """Mask the four 2-bit fields."""
        return digits_i2(1)


class AmxT5(Amx):
    """Five base-3 digits a byte (1.6 bits a weight): four by a table of 81, the fifth by range."""

    name = "amx_t5"
    format = "t5"
    features = (*AMX_INT8, "avx512vbmi")
    groups = 8

    def digits(self) -> Digits:
        """Look four digits up; the fifth follows from the range."""
        return digits_t5(1)
