"""The template of quantised attention on AMX tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wattune.ops import operator
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cpu.quantized_attention.amx import AmxPlan, AmxQuantizedKernel
from wattune.schedules.cpu.quantized_attention.product import BLOCK
from wattune.schedules.cpu.quantized_attention.templates import VnniAttention
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target

TILE_ROWS = 16
# Knobs of the vector templates, which tiles do not have.
_VECTOR_KNOBS = ("unroll", "columns")


class AmxQuantizedAttention(VnniAttention):
    """Products of bytes in tiles; the group of queries fills their rows."""

    name = "quantized_attention_amx"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Need tiles for bytes, and fields of whole blocks of channels."""
        fields = 8 // problem.quantized.bits
        whole = problem.head_dim % (fields * BLOCK) == 0 and problem.block_tokens % BLOCK == 0
        return whole and target.has("amx_tile", "amx_int8") and super().applies(problem, target)

    def space(self, problem: QuantizedDecodeAttention, target: Target) -> Space:
        """Knobs of the vector templates but for their unrolling; rows must fill every pass."""
        total = problem.group * problem.query_tokens
        rows = tuple(r for r in range(1, TILE_ROWS + 1) if total % r == 0)
        knobs = []
        for knob in super().space(problem, target).knobs:
            if knob.name == "rows":
                knobs.append(Knob("rows", rows, rows[-1]))
            elif knob.name == "tile":
                tiles = tuple(t for t in knob.values if int(t) >= BLOCK)
                knobs.append(Knob("tile", tiles, max(tiles)))
            elif knob.name not in _VECTOR_KNOBS:
                knobs.append(knob)
        return Space(self.name, tuple(knobs), ())

    def plan(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> AmxPlan:
        """Return the schedule."""
        plan = super().plan(problem, target, {**values, "unroll": 1, "columns": 1})
        fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
        return AmxPlan(**fields)

    def lower(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Any:
        """Return the kernel."""
        kernel = AmxQuantizedKernel(self.plan(problem, target, values))
        arguments = operator(self.operator).arguments(problem)
        return tensor_program(arguments, self.sizes(problem, target, values), kernel.emit)
