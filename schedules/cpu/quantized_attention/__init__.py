"""CPU templates of quantised attention; the first applicable one is the default."""

from __future__ import annotations

from wattune.schedules.cpu.quantized_attention.amx_template import AmxQuantizedAttention
from wattune.schedules.cpu.quantized_attention.templates import (
    Avx2Attention,
    PortableAttention,
    VnniAttention,
)
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    AmxQuantizedAttention(),
    VnniAttention(),
    Avx2Attention(),
    PortableAttention(),
)
