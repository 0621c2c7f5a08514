"""Scores of packed keys: products of codes and queries, and what scales and zeros make of them.

Per channel: queries are multiplied by the scales of a group of tokens, and their products with the
zeros are where the sums begin. Per token: sums of each group of channels are scaled in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.quantized_attention.codes import CODE_UNIT, Codes
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import HALF, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.queries import Queries

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Slot:
    """A tile in shared memory: the byte where it begins, and views of the block's memory."""

    plan: QuantizedPlan
    at: Expr
    words: Buffer

    def params(self, into: Buffer, which: str, row: Expr, number: Expr) -> None:
        """Load two words: four numbers of a row of params, from a multiple of 4 on."""
        start = self.plan.params_at[which == "v"]
        width = self.plan.key_params if which == "k" else self.plan.tile
        at = self.at + start + (row * width + number) * HALF
        ptx.load_wide(into, 0, self.words, T.shift_right(at, T.int32(2)), 2)


def four(slot: Slot, which: str, row: Expr, number: Expr) -> Buffer:
    """Return four params as fp32."""
    words, reals = ptx.registers(2, "uint32"), ptx.registers(4, "float32")
    slot.params(words, which, row, number)
    for i in range(2):
        ptx.unpack([reals[2 * i], reals[2 * i + 1]], words[i], "float16")
    return reals


@dataclass(frozen=True)
class Keys:
    """Emits scores; those of a part are, for each panel, 4 octets of 2 columns each."""

    plan: QuantizedPlan
    place: Place
    queries: Queries
    codes: Codes
    scaled: Buffer
    begins: Buffer

    @classmethod
    def declare(cls, plan: QuantizedPlan, place: Place, queries: Queries) -> Keys:
        """Declare registers."""
        words = 2 * plan.panels * len(plan.steps) if plan.cache.per_channel("k") else 1
        return cls(
            plan,
            place,
            queries,
            Codes.declare(plan.cache.bits),
            ptx.registers(words, "uint32"),
            ptx.registers(2 * plan.panels, "float32"),
        )

    def group(self, slot: Slot, group: Expr) -> None:
        """Emit what a group of tokens of the tile needs, where keys have params per channel."""
        plan, panels = self.plan, self.plan.panels
        sums = ptx.registers(4 * plan.cache.fields * panels, "float32")
        for i in range(4 * plan.cache.fields * panels):
            ptx.put(sums, i, T.float32(0))
        width = plan.problem.head_dim // plan.cache.fields
        pairs = ptx.registers(4, "uint32")
        for at, step in enumerate(plan.steps):
            word = self.place.column + 4 * step.word
            if 4 * step.word + 3 >= plan.key_words:
                word = T.min(word, plan.key_words - 1)
            channel = step.field * width + QUAD * word
            for row in range(2):
                found = ptx.registers(2, "uint32")
                slot.params(found, "k", 2 * group + row, channel)
                for half, selector in enumerate((0x5410, 0x7632)):
                    ptx.permute_bytes(pairs[2 * row + half], found[0], found[1], T.uint32(selector))
            for panel in range(panels):
                words = [self.queries.word(panel, at, half) for half in range(2)]
                for half in range(2):
                    into = self.scaled[2 * (panel * len(plan.steps) + at) + half]
                    ptx.multiply_pairs(into, words[half], pairs[half], "float16")
                total = [sums[4 * (panel * plan.cache.fields + step.field) + i] for i in range(4)]
                zeros = [pairs[2], pairs[2], pairs[3], pairs[3]]
                ptx.multiply_add(total, zeros, words, "float16")
        for panel in range(panels):
            for i in range(2):
                # Queries of a field are divided by what its place multiplies codes by.
                terms = [
                    sums[4 * (panel * plan.cache.fields + field) + i]
                    * T.float32(CODE_UNIT * 2.0 ** (plan.cache.bits * field))
                    for field in range(plan.cache.fields)
                ]
                total = terms[0]
                for term in terms[1:]:
                    total = total + term
                ptx.put(self.begins, 2 * panel + i, total)

    def _right(self, panel: int, step: int) -> list[Expr]:
        if not self.plan.cache.per_channel("k"):
            return [self.queries.word(panel, step, half) for half in range(2)]
        at = 2 * (panel * len(self.plan.steps) + step)
        return [self.scaled[at + half] for half in range(2)]

    def scores(self, slot: Slot, part: Expr, quad: Expr, into: list[Buffer]) -> None:
        """Emit the scores of a part of the tile, in units of the queries.

        ``quad`` is the number within the tile of the quad whose tokens lie in the lane's row.
        """
        plan = self.plan
        groups = plan.cache.groups("k")
        sums = [ptx.registers(8 * groups, "float32") for _ in range(plan.panels)]
        for panel, total in enumerate(sums):
            for i in range(8 * groups):
                begin = (
                    self.begins[2 * panel + i % 2] if plan.cache.per_channel("k") else T.float32(0)
                )
                ptx.put(total, i, begin)
        for load in range(plan.key_loads):
            self.codes.load(slot.words, slot.at, part * plan.key_loads + load, self.place.lane)
            for at, step in enumerate(plan.steps):
                if step.word != load:
                    continue
                for pair in range(2):
                    left = self.codes.left(step.field, pair)
                    for panel, total in enumerate(sums):
                        first = 8 * step.group + 4 * pair
                        places = [total[first + i] for i in range(4)]
                        ptx.multiply_add(places, left, self._right(panel, at), "float16")
        if plan.cache.per_channel("k"):
            for panel, total in enumerate(sums):
                for i in range(8):
                    ptx.put(into[panel], i, total[i])
        else:
            self._per_token(slot, quad, sums, into)

    def _per_token(self, slot: Slot, quad: Expr, sums: list[Buffer], into: list[Buffer]) -> None:
        """Emit sums over groups of scale * sum + zero * sum of queries."""
        plan = self.plan
        for group in range(plan.cache.groups("k")):
            scales, zeros = (four(slot, "k", 2 * group + row, QUAD * quad) for row in range(2))
            for panel in range(plan.panels):
                for i in range(8):
                    # Registers of products: two rows of two columns for each pair of octets.
                    octet = i // 2
                    query = self.queries.sums[2 * (panel * plan.cache.groups("k") + group) + i % 2]
                    term = sums[panel][8 * group + i] * scales[octet] + zeros[octet] * query
                    before = into[panel][i]
                    ptx.put(into[panel], i, term if group == 0 else before + term)
