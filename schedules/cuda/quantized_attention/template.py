"""The template of quantised attention for NVIDIA GPUs from sm_80 on."""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.dtypes import itemsize
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cuda.attention.base import WIDEST
from wattune.schedules.cuda.attention.program import program
from wattune.schedules.cuda.base import CudaTemplate
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.cuda.quantized_attention.counts import counts
from wattune.schedules.cuda.quantized_attention.kernel import Attend
from wattune.schedules.cuda.quantized_attention.knobs import constraints, knobs, plan_of
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout


class QuantizedAttention(CudaTemplate):
    """Products of 16-bit floats with codes as they lie in the cache."""

    name = "quantized_attention_gpu"
    operator = "quantized_decode_attention"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Say whether rows are of 16-bit floats, and sums fit the registers."""
        return itemsize(problem.dtype) == 2 and max(problem.head_dim, problem.value_dim) <= WIDEST

    def space(self, problem: QuantizedDecodeAttention, target: Target) -> Space:
        """Knobs: warps and their rows, tiles, rings, splits, registers."""
        return Space(self.name, knobs(problem, target), constraints(problem, target))

    def layout(self, problem: QuantizedDecodeAttention, values: Mapping[str, Value]) -> Layout:
        """The operator's own: kernels read the cache as it lies."""
        return Layout.make(problem.format)

    def sizes(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the workspace."""
        return {"workspace_bytes": plan_of(problem, target, values).scratch.bytes}

    def lower(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> GpuProgram:
        """Return the kernels and their host function."""
        plan = plan_of(problem, target, values)
        return program(plan, Attend(plan).emit, self.sizes(problem, target, values))

    def counts(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count what the kernels do."""
        return counts(plan_of(problem, target, values), target)
