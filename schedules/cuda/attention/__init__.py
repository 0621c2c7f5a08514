"""CUDA templates of decode attention, one generator of kernels for all; merging of states."""

from __future__ import annotations

from wattune.schedules.cuda.attention.base import (
    BlockSparseTemplate,
    DecodeAttentionTemplate,
    RectifyTemplate,
    TokenSparseTemplate,
)
from wattune.schedules.cuda.attention.merge_states import MergeStatesTemplate
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    DecodeAttentionTemplate(),
    BlockSparseTemplate(),
    TokenSparseTemplate(),
    RectifyTemplate(),
    MergeStatesTemplate(),
)
