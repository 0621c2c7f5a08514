"""CPU templates of grouped GEMM and fused experts; the first applicable one is the default."""

from __future__ import annotations

from wattune.schedules.cpu.grouped_gemm.base import FusedMoeTemplate, GroupedGemmTemplate
from wattune.schedules.cpu.grouped_gemm.templates import templates_of
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    *templates_of(GroupedGemmTemplate),
    *templates_of(FusedMoeTemplate),
)
