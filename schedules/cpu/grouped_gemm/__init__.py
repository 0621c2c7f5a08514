"""CPU templates of grouped GEMM and fused experts; the first applicable one is the default."""

from __future__ import annotations

from wattune.schedules.cpu.grouped_gemm.templates import (
    FusedMoeAmx,
    FusedMoeAvx2,
    FusedMoeAvx512,
    FusedMoePortable,
    GroupedGemmAmx,
    GroupedGemmAvx2,
    GroupedGemmAvx512,
    GroupedGemmPortable,
)
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    GroupedGemmAmx(),
    GroupedGemmAvx512(),
    GroupedGemmAvx2(),
    GroupedGemmPortable(),
    FusedMoeAmx(),
    FusedMoeAvx512(),
    FusedMoeAvx2(),
    FusedMoePortable(),
)
