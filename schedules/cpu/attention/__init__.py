"""CPU templates of decode attention: one generator of kernels for all operators."""

from __future__ import annotations

from wattune.schedules.cpu.attention.amx_templates import (
    AmxBlockSparse,
    AmxDecodeAttention,
    AmxRectify,
)
from wattune.schedules.cpu.attention.base import (
    BlockSparseTemplate,
    DecodeAttentionTemplate,
    RectifyTemplate,
    TokenSparseTemplate,
)
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    AmxDecodeAttention(),
    AmxBlockSparse(),
    AmxRectify(),
    DecodeAttentionTemplate(),
    BlockSparseTemplate(),
    TokenSparseTemplate(),
    RectifyTemplate(),
)
