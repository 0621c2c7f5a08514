"""The attention templates for NVIDIA GPUs from sm_80 on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.ops.dtypes import itemsize
from wattune.schedules.cuda.attention.counts import counts
from wattune.schedules.cuda.attention.kernel import Attend
from wattune.schedules.cuda.attention.knobs import constraints, knobs, plan_of, registers_of, room
from wattune.schedules.cuda.attention.plan import KEYS
from wattune.schedules.cuda.attention.program import program
from wattune.schedules.cuda.base import CudaTemplate
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

WIDEST = 256


class AttentionTemplate(CudaTemplate):
    """An attention kernel; a subclass names the operator."""

    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether rows are of 16-bit floats that fill matrices."""
        widths = (problem.head_dim, problem.value_dim)
        return itemsize(problem.dtype) == 2 and all(
            width % KEYS == 0 and width <= WIDEST for width in widths
        )

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs: teams and their rows, tiles, rings, copies, splits, registers."""
        return Space(self.name, knobs(problem, target), constraints(problem, target))

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """Bytes of the workspace."""
        return {"workspace_bytes": plan_of(problem, target, values).scratch.bytes}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> GpuProgram:
        """Return the kernels and their host function."""
        plan = plan_of(problem, target, values)
        return program(plan, Attend(plan).emit, self.sizes(problem, target, values))

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernels do."""
        plan = plan_of(problem, target, values)
        return counts(plan, registers_of(plan), room(plan, target))


class DecodeAttentionTemplate(AttentionTemplate):
    """Dense or windowed attention."""

    name = "decode_attention"
    operator = "decode_attention"


class BlockSparseTemplate(AttentionTemplate):
    """Attention to listed blocks."""

    name = "block_sparse_decode_attention"
    operator = "block_sparse_decode_attention"


class TokenSparseTemplate(AttentionTemplate):
    """Attention to listed tokens."""

    name = "token_sparse_decode_attention"
    operator = "token_sparse_decode_attention"


class RectifyTemplate(AttentionTemplate):
    """New rows, then dense attention."""

    name = "rectify_attention"
    operator = "rectify_attention"
