"""Look-up templates: indices of weight groups select from tables of partial sums.

for token: for group of columns: tables[group][16] = sums of the activations by index
for task of grain row blocks, in parallel:
    for tokens in blocks of token_block: for block of the task: for row_vectors of the block:
        sums = 0
        for chunk of four steps:                  # unrolled by k_unroll, prefetched
            for step, nibble:                     # 1 or 4 groups a row
                index[row_vectors] = half of the bytes of weight[block, chunk, step]
                sums[t, row_vectors] += sign * tables[t, groups][index]
        y[tokens, row_vectors] = scaled(sums)

There is no product with a weight: the formats of Bitnet.cpp (arXiv 2502.11880) with exact sums.
vpermi2b is not among the look-ups: a sum takes two bytes, so two look-ups, whatever the size of
the table; a table of 128 would hold the sign too, which a bit matrix product applies for less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattune.ops.ternary_formats import FORMATS, LookupFormat
from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu.ternary_gemm.base import BlobTemplate
from wattune.schedules.cpu.ternary_gemm.lookup_layout import LookupLayout
from wattune.schedules.cpu.ternary_gemm.lookup_permute import PermuteKernel
from wattune.schedules.cpu.ternary_gemm.lookup_shuffle import ShuffleKernel
from wattune.schedules.cpu.ternary_gemm.lookup_tables import BiasedTables, DigitTables, Tables
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout

AVX512 = ("avx512bw", "avx512f")
PERMUTE, SHUFFLE, SHUFFLE_AVX2 = "vpermb_512", "vpshufb_512", "vpshufb_256"
# What looks up, with its vector's bits, and the features that takes; the best one first.
LOOKUPS = {
    PERMUTE: (*AVX512, "avx512_vnni", "avx512vbmi", "gfni"),
    SHUFFLE: AVX512,
    SHUFFLE_AVX2: ("avx2",),
}
# How many vectors of rows, times tokens, have sums that stay in registers.
SUMS = {PERMUTE: 12, SHUFFLE: 6, SHUFFLE_AVX2: 2}


class Lookup(BlobTemplate):
    """What the templates of all look-up formats share."""

    features = ("avx2",)

    def space(self, problem: TernaryGemm, target: Target) -> Space:
        """Knobs: instruction and width, interleave, unrolling, prefetch, token block, grain."""
        lookups = tuple(name for name, needs in LOOKUPS.items() if target.has(*needs))
        permute = lookups[0] == PERMUTE
        many = problem.tokens > 1
        token_blocks = tuple(t for t in (1, 2, 3, 4, 6) if t <= problem.tokens)
        knobs = (
            Knob("lookup", lookups, lookups[0], layout=True),
            Knob("vectors", (1, 2, 4, 8), 4 if permute else 2, layout=True),
            Knob("row_vectors", (1, 2, 4, 8), 4 if permute else 2),
            Knob("k_unroll", (1, 2), 1),
            Knob("prefetch", (0, 1024, 2048, 4096, 8192, 16384), 8192),
            Knob("token_block", token_blocks, min(2, problem.tokens)),
            Knob("grain", (1, 2, 4, 8), 4 if many and problem.out_features >= 1024 else 1),
        )
        constraints = (
            Constraint(
                "row_vectors must not exceed vectors",
                lambda v: int(v["row_vectors"]) <= int(v["vectors"]),
            ),
            Constraint(
                "row_vectors * token_block must leave the sums in registers: 12, 6 or 2 by lookup",
                lambda v: int(v["row_vectors"]) * int(v["token_block"]) <= SUMS[str(v["lookup"])],
            ),
            Constraint(
                "an unrolled chunk must stay small: k_unroll * row_vectors * token_block <= 8",
                lambda v: (
                    v["k_unroll"] == 1
                    or int(v["k_unroll"]) * int(v["row_vectors"]) * int(v["token_block"]) <= 8
                ),
            ),
        )
        return Space(self.name, knobs, constraints)

    def layout(self, problem: TernaryGemm, values: Mapping[str, Value]) -> Layout:
        """The format, the arrangement of groups in a vector, its width and the interleave."""
        return Layout.make(self.format, lookup=values["lookup"], vectors=values["vectors"])

    def weight(self, problem: TernaryGemm, values: Mapping[str, Value]) -> LookupLayout:
        """Return the sizes of the packed weight."""
        coding = FORMATS[self.format]
        assert isinstance(coding, LookupFormat)
        permute = values["lookup"] == PERMUTE
        return LookupLayout(
            problem.out_features,
            problem.in_features,
            coding,
            width=32 if values["lookup"] == SHUFFLE_AVX2 else 64,
            lanes=4 if permute else 1,
            vectors=int(values["vectors"]),
            sign_sums=permute and coding.mirror,
        )

    def tables(self, problem: TernaryGemm, values: Mapping[str, Value]) -> Tables:
        """Return where the tables are and how they are built."""
        kind = BiasedTables if values["lookup"] == PERMUTE else DigitTables
        return kind(self.weight(problem, values), int(values["token_block"]))

    def workspace(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Workspace:
        """Return the offsets of the workspace, with the tables of every token."""
        columns = self.weight(problem, values).padded_columns
        scratch = self.tables(problem, values).scratch_bytes(problem.tokens)
        return Workspace.of(problem.tokens, int(values["token_block"]), columns, scratch)

    def body(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        weight = self.weight(problem, values)
        token_block = int(values["token_block"])
        common: dict[str, Any] = {
            "problem": problem,
            "threads": target.threads,
            "weight": weight,
            "workspace": self.workspace(problem, target, values),
            "token_block": token_block,
        }
        for name in ("row_vectors", "k_unroll", "prefetch", "grain"):
            common[name] = int(values[name])
        if values["lookup"] == PERMUTE:
            return PermuteKernel(tables=BiasedTables(weight, token_block), **common).emit
        return ShuffleKernel(tables=DigitTables(weight, token_block), **common).emit

    def counts(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does."""
        weight, tables = self.weight(problem, values), self.tables(problem, values)
        token_block, rows = int(values["token_block"]), int(values["row_vectors"])
        blocks = -(-problem.tokens // token_block)
        # Look-ups of one nibble: of every index vector, for every token.
        halves = 2.0 * weight.blocks * weight.vectors * weight.steps * blocks
        looked = halves * token_block
        decode, each = _operations(weight)
        table_bytes = float(tables.scratch_bytes(problem.tokens))
        read = table_bytes * weight.blocks * (weight.vectors // rows)
        level = "l1" if token_block * weight.steps * 2 * tables.bytes <= target.l1 // 2 else "l2"
        moved = {
            "memory": float(weight.bytes),
            "l2": float(weight.bytes * blocks) + table_bytes,
            "l1": float(weight.bytes * blocks),
        }
        moved[level] += read
        built = problem.tokens * weight.groups
        return Counts(
            bytes=moved,
            operations={
                "shuffle": 2 * looked + built,
                "dot": 2 * looked if weight.lanes == 4 else looked / 4,
                "alu": halves * decode + looked * each + 8.0 * built,
            },
            tiles={"blocks": weight.blocks, "token_blocks": blocks, "steps": weight.steps},
            parallelism=-(-weight.blocks // int(values["grain"])),
            registers=2.0 * rows * token_block + 2 * rows + 2,
            code=float(
                int(values["k_unroll"]) * 8 * rows * (2 + decode + token_block * (4 + each))
            ),
        )


def _operations(weight: LookupLayout) -> tuple[float, float]:
    """Return the ALU instructions of a nibble, and of its look-up for one token.

    A nibble is masked, every other one is shifted. Signs cost one instruction (a bit matrix
    product), or a test and four masked ones, or two and two. Digits are added, then widened.
    """
    mirror = weight.coding.mirror
    if weight.lanes == 4:
        return 1.5 + mirror, 0.0
    if weight.width == 64:
        return 1.5 + mirror, 2.5 + 2 * mirror
    return 1.5 + 2 * mirror, 2.5 + 2 * mirror


class LookupTL1(Lookup):
    """Two ternary weights an index of 9: 2 bits a weight."""

    name = "lookup_tl1"
    format = "tl1"


class LookupTL2(Lookup):
    """Three ternary weights an index of 14 and a sign: 1.667 bits a weight."""

    name = "lookup_tl2"
    format = "tl2"


class LookupElut(Lookup):
    """Two weights of five levels an index of 13 and a sign: 2.5 bits a weight."""

    name = "lookup_elut"
    format = "elut"
