"""The template of quantised attention on AMX tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wattune.ops import operator
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cpu.quantized_attention.amx import AmxQuantizedKernel
from wattune.schedules.cpu.quantized_attention.amx_plan import ALL_TILES, AmxPlan, TileProduct
from wattune.schedules.cpu.quantized_attention.templates import VnniAttention
from wattune.schedules.cpu.vector import LANES
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# Rows of numbers in a tile: each takes two of its 16 rows.
MOST_ROWS = 8
# Numbers of a whole tile's row, and of half of one.
BLOCKS = (64, 32)
# Knobs of the vector templates, which tiles do not have.
_VECTOR_KNOBS = ("unroll", "columns")


class AmxQuantizedAttention(VnniAttention):
    """Products of bytes in tiles; the group of queries fills their rows."""

    name = "quantized_attention_amx"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Need tiles for bytes, and whole blocks of channels and tokens."""
        whole = problem.head_dim % BLOCKS[-1] == problem.block_tokens % BLOCKS[-1] == 0
        return whole and target.has("amx_tile", "amx_int8") and super().applies(problem, target)

    def space(self, problem: QuantizedDecodeAttention, target: Target) -> Space:
        """Knobs of the vector templates but for their unrolling; rows must fill every pass."""
        total = problem.group * problem.query_tokens
        rows = tuple(r for r in range(1, MOST_ROWS + 1) if total % r == 0)
        knobs = []
        for knob in super().space(problem, target).knobs:
            if knob.name == "rows":
                knobs.append(Knob("rows", rows, rows[-1]))
            elif knob.name == "tile":
                tiles = tuple(int(t) for t in knob.values if int(t) >= BLOCKS[-1])
                # Tiles beyond a listed block are work for nothing.
                most = max(problem.block_size or max(tiles), tiles[0])
                knobs.append(Knob("tile", tiles, max(t for t in tiles if t <= most)))
            elif knob.name not in _VECTOR_KNOBS:
                knobs.append(knob)
        return Space(self.name, tuple(knobs), ())

    def plan(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> AmxPlan:
        """Return the schedule."""
        plan = super().plan(problem, target, {**values, "unroll": 1, "columns": 1})
        sizes = (plan.tile, problem.head_dim // plan.key_groups)
        block = next(b for b in BLOCKS if all(size % b == 0 for size in sizes))
        product = TileProduct(LANES, rows=plan.base.item_rows, block=block)
        fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
        return AmxPlan(**{**fields, "product": product})

    def lower(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Any:
        """Return the kernel."""
        kernel = AmxQuantizedKernel(self.plan(problem, target, values))
        arguments = operator(self.operator).arguments(problem)
        return tensor_program(arguments, self.sizes(problem, target, values), kernel.emit)

    def counts(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count products of tiles in place of those of bytes in registers."""
        plan, found = self.plan(problem, target, values), super().counts(problem, target, values)
        widths = problem.head_dim + problem.value_dim
        each = plan.pass_count * plan.tile * widths // (plan.block * LANES)
        operations = {"tile": found.tiles["tiles"] * each, "alu": found.operations["alu"]}
        return dataclasses.replace(found, operations=operations, registers=float(len(ALL_TILES)))
