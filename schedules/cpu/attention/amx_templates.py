"""Templates whose scores and sums are products of AMX tiles, for bfloat16 caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wattune.ops import operator
from wattune.schedules.cpu.attention.amx import COLUMNS, KEYS, AmxScores, AmxValues
from wattune.schedules.cpu.attention.base import (
    AttentionTemplate,
    BlockSparseTemplate,
    DecodeAttentionTemplate,
    RectifyTemplate,
)
from wattune.schedules.cpu.attention.kernel import Kernel, Own
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target

Expr = Any

TILE_ROWS = 16
# Knobs of the vector engines, which tiles do not have.
_VECTOR_KNOBS = ("unroll", "columns", "stretch", "scores", "values")


class AmxKernel(Kernel):
    """A kernel whose threads configure their tiles first and give them back at the end."""

    scores: AmxScores

    def own(self, thread: Expr) -> Own:
        """Return a thread's scratch, its tiles configured."""
        self.scores.begin(self.memory.own("engine", thread))
        return super().own(thread)

    def _share(self, thread: Expr) -> None:
        super()._share(thread)
        self.scores.end()


class AmxAttention(AttentionTemplate):
    """What the templates on tiles share."""

    def applies(self, problem: Any, target: Target) -> bool:
        """Ask for tiles, bfloat16, and rows of whole tiles."""
        return (
            target.has("amx_tile", "amx_bf16", "avx512f")
            and problem.dtype == "bfloat16"
            and problem.head_dim % COLUMNS == 0
            and problem.value_dim % TILE_ROWS == 0
        )

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs of the vector templates but for their unrolling; rows must fill every group."""
        inherited = super().space(problem, target).knobs
        total = self.plan_rows(problem)
        rows = tuple(r for r in range(1, TILE_ROWS + 1) if total % r == 0)
        knobs = []
        for knob in inherited:
            if knob.name == "rows":
                knobs.append(Knob("rows", rows, rows[-1]))
            elif knob.name == "block":
                blocks = tuple(b for b in knob.values if int(b) >= COLUMNS)
                knobs.append(Knob("block", blocks, max(64, int(knob.default))))
            elif knob.name not in _VECTOR_KNOBS:
                knobs.append(knob)
        constraints: tuple[Constraint, ...] = ()
        return Space(self.name, tuple(knobs), constraints)

    def plan(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Plan:
        """Return the schedule."""
        filled = {**values, "unroll": 1, "columns": 2, "stretch": 128}
        filled.update(scores="amx", values="amx")
        return dataclasses.replace(super().plan(problem, target, filled), least_keys=KEYS)

    def parts(self, plan: Plan) -> tuple[AmxScores, AmxValues, Scratch]:
        """Return the engines of a plan, and its workspace."""
        scores = AmxScores(plan)
        values = AmxValues(plan, scores)
        sizes = (scores.query_bytes, values.total_lanes, scores.engine_bytes)
        return scores, values, Scratch.of(plan, *sizes)

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the kernel."""
        scores, weighted, scratch = self.parts(self.plan(problem, target, values))
        kernel = AmxKernel(scores.plan, scratch, scores, weighted, self.stream)
        arguments = operator(self.operator).arguments(problem)
        return tensor_program(arguments, self.sizes(problem, target, values), kernel.emit)


class AmxDecodeAttention(AmxAttention, DecodeAttentionTemplate):
    """Dense or windowed attention."""

    name = "amx_decode_attention"


class AmxBlockSparse(AmxAttention, BlockSparseTemplate):
    """Attention to listed blocks."""

    name = "amx_block_sparse_decode_attention"


class AmxRectify(AmxAttention, RectifyTemplate):
    """New rows, then dense attention."""

    name = "amx_rectify_attention"
