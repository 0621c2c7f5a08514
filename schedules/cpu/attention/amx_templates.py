"""Templates whose scores and sums are products of AMX tiles, for bfloat16 caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from wattune.ops import operator
from wattune.schedules.cpu.attention.amx import COLUMNS, KEYS, AmxScores, AmxValues
from wattune.schedules.cpu.attention.base import (
    AttentionTemplate,
    BlockSparseTemplate,
    DecodeAttentionTemplate,
    RectifyTemplate,
)
from wattune.schedules.cpu.attention.counts import tile_counts
from wattune.schedules.cpu.attention.kernel import Kernel, Own
from wattune.schedules.cpu.attention.knobs import AHEAD, is_listed
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.cpu.attention.prefetch import Operand, ahead_of_sums
from wattune.schedules.cpu.attention.scores import BesideScores
from wattune.schedules.cpu.attention.values import BesideSums
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any

TILE_ROWS = 16


class AmxKernel(Kernel):
    """A kernel whose threads configure their tiles first and give them back at the end."""

    scores: AmxScores
    values: AmxValues
    joins = True

    def own(self, thread: Expr) -> Own:
        """Return a thread's scratch, its tiles configured."""
        self.scores.begin(self.memory.own("engine", thread))
        return super().own(thread)

    def besides(self, keys: Operand, values: Operand) -> tuple[BesideScores, BesideSums | None]:
        """Return the joining of values, and what is asked for of the next tile."""
        ahead = partial(ahead_of_sums, self.plan, (keys, values)) if self.plan.prefetch else None
        return partial(self.values.join, keys, values), ahead

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
            and problem.value_dim % COLUMNS == 0
        )

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs: tile, folding, splits, prefetch; rows must fill every group."""
        inherited = {knob.name: knob for knob in super().space(problem, target).knobs}
        total = self.plan_rows(problem)
        rows = tuple(r for r in range(1, TILE_ROWS + 1) if total % r == 0)
        # Blocks lie anywhere: each starts where no prefetcher is yet. Elsewhere small tiles, whose
        # keys, values and joined values fit the first cache.
        block, prefetch, wake = (128, 16, 16) if is_listed(problem) else (32, 32, 0)
        knobs = (
            Knob("block", (32, 64, 128), block),
            Knob("rows", rows, rows[-1]),
            inherited["splits"],
            inherited["split_tokens"],
            Knob("prefetch", (0, 16, 32, 64), prefetch),
            Knob("wake", (0, 16, 32), wake),
        )
        return Space(self.name, knobs, (AHEAD,))

    def plan(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Plan:
        """Return the schedule."""
        filled = {**values, "unroll": 1, "columns": 2, "stretch": 128}
        filled.update(level=1, scores="amx", values="amx")
        plan = super().plan(problem, target, filled)
        return dataclasses.replace(plan, least_keys=KEYS)

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

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does."""
        return tile_counts(self.plan(problem, target, values))


class AmxDecodeAttention(AmxAttention, DecodeAttentionTemplate):
    """Dense or windowed attention."""

    name = "amx_decode_attention"


class AmxBlockSparse(AmxAttention, BlockSparseTemplate):
    """Attention to listed blocks."""

    name = "amx_block_sparse_decode_attention"


class AmxRectify(AmxAttention, RectifyTemplate):
    """New rows, then dense attention."""

    name = "amx_rectify_attention"
