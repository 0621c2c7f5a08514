"""Queries as right sides of products: in the order of key codes' channels, and of the residual's.

A query row is multiplied by a power of two that brings its largest element to 1/2..1: in float16 it
then keeps 11 bits. Codes are used as the float16 whose bits they are, code * 2^(place - 24) (a
subnormal number), so queries of a field are divided by 2^place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.softmax import LOG2_E
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.codes import CODE_UNIT
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import COLUMNS, DEPTH, QuantizedPlan

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Queries:
    """A warp's queries in registers.

    ``words`` holds, for each panel of 8 rows and step, two words of float16. ``units`` are what
    scores of each panel and column are multiplied by to become logarithms to base 2; ``sums`` those
    of the queries' channels in each group, for keys with zeros per token.
    """

    plan: QuantizedPlan
    words: Buffer
    units: Buffer
    sums: Buffer

    @classmethod
    def load(cls, plan: QuantizedPlan, place: Place, block: Block) -> Queries:
        """Emit loading and conversion."""
        panels, steps = plan.panels, len(plan.steps)
        found = cls(
            plan,
            ptx.registers(2 * panels * steps, "uint32"),
            ptx.registers(2 * panels, "float32"),
            ptx.registers(2 * panels * plan.cache.groups("k"), "float32"),
        )
        for panel in range(panels):
            found._load(place, block, panel)
        return found

    def word(self, panel: int, step: int, half: int) -> Expr:
        """Return a word of a panel's step: queries of its even channels, or of its odd ones."""
        return self.words[2 * (panel * len(self.plan.steps) + step) + half]

    def _load(self, place: Place, block: Block, panel: int) -> None:
        plan, problem = self.plan, self.plan.problem
        words = block.view("q", "uint32")
        row = T.bind(place.query_row(panel, place.row))
        base = query_at(plan, place, T.min(row, plan.item_rows - 1))
        loads = plan.cache.fields * plan.key_loads
        reals = ptx.registers(QUAD * loads, "float32")
        width = problem.head_dim // plan.cache.fields
        most = ptx.registers(1, "float32")
        ptx.put(most, 0, T.float32(0))
        for load in range(plan.key_loads):
            for field in range(plan.cache.fields):
                at = QUAD * (load * plan.cache.fields + field)
                channel = field * width + DEPTH * load + QUAD * place.column
                inside = T.And(row < plan.item_rows, place.column + 4 * load < plan.key_words)
                self._quad(words, base, channel, inside, [reals[at + i] for i in range(QUAD)])
                for i in range(QUAD):
                    ptx.put(most, 0, T.max(most[0], T.abs(reals[at + i])))
        for distance in (1, 2):
            ptx.put(most, 0, T.max(most[0], ptx.across(most[0], distance)))
        # 2^-(exponent + 1), from the bits; at most 2^126.
        exponent = T.shift_right(T.reinterpret("uint32", most[0]), T.uint32(23))
        biased = T.max(253 - T.cast(exponent, "int32"), 1)
        factor = T.bind(T.reinterpret("float32", T.shift_left(biased, T.int32(23))))
        self._unit(place, panel, factor)
        self._steps(place, panel, reals, factor)

    def _quad(
        self, words: Buffer, base: Expr, channel: Expr, inside: Expr, into: list[Expr]
    ) -> None:
        """Load four channels, zeros where there are none."""
        pair = ptx.registers(2, "uint32")
        for i in range(2):
            ptx.put(pair, i, T.uint32(0))
        with T.If(inside), T.Then():
            at = base + T.cast(T.shift_right(channel, T.int32(1)), "int64")
            ptx.load_wide(pair, 0, words, at, 2)
        for i in range(2):
            ptx.unpack(into[2 * i : 2 * i + 2], pair[i], self.plan.problem.dtype)

    def _unit(self, place: Place, panel: int, factor: Expr) -> None:
        """Hand the rows' units to the lanes that hold their scores."""
        scale = self.plan.problem.scale * LOG2_E / CODE_UNIT
        unit = T.bind(T.float32(scale) / factor)
        for i in range(2):
            ptx.put(self.units, 2 * panel + i, from_row(place, unit, i))

    def _steps(self, place: Place, panel: int, reals: Buffer, factor: Expr) -> None:
        plan = self.plan
        size = plan.problem.head_dim // plan.cache.groups("k")
        width = plan.problem.head_dim // plan.cache.fields
        sums = ptx.registers(plan.cache.groups("k"), "float32")
        for group in range(plan.cache.groups("k")):
            ptx.put(sums, group, T.float32(0))
        for at, step in enumerate(plan.steps):
            first = QUAD * (step.word * plan.cache.fields + step.field)
            place_of = T.float32(2.0 ** -(plan.cache.bits * step.field))
            channel = step.field * width + DEPTH * step.word + QUAD * place.column
            some = T.truncdiv(channel, size) == step.group
            values = [T.bind(reals[first + i] * factor) for i in range(QUAD)]
            if not step.whole:
                values = [T.bind(T.Select(some, v, T.float32(0))) for v in values]
            for half in range(2):
                ptx.pack(
                    self.word(panel, at, half),
                    values[half] * place_of,
                    values[half + 2] * place_of,
                    "float16",
                )
            total = sums[step.group] + ((values[0] + values[1]) + (values[2] + values[3]))
            ptx.put(sums, step.group, total)
        if plan.cache.per_channel("k"):
            return
        for group in range(plan.cache.groups("k")):
            for distance in (1, 2):
                ptx.put(sums, group, sums[group] + ptx.across(sums[group], distance))
            for i in range(2):
                whole = from_row(place, sums[group], i) * T.float32(CODE_UNIT)
                ptx.put(self.sums, 2 * (panel * plan.cache.groups("k") + group) + i, whole)


def query_at(plan: QuantizedPlan, place: Place, row: Expr) -> Expr:
    """Return the first word of a query row of 16-bit elements."""
    problem = plan.problem
    token = T.truncdiv(row, problem.group)
    head = place.head * problem.group + T.truncmod(row, problem.group)
    index = T.cast(place.request, "int64") * problem.query_tokens + token
    return T.bind((index * problem.query_heads + head) * (problem.head_dim // 2))


def from_row(place: Place, value: Expr, i: int) -> Expr:
    """Return what the lanes of row 2 column + i hold, for the columns of scores of this lane."""
    return ptx.from_lane(value, place.column * COLUMNS + 4 * i)
