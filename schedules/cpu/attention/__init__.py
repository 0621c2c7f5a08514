"""CPU templates of decode attention: one generator of kernels for all operators."""

from __future__ import annotations

from wattune.schedules.cpu.attention.base import DecodeAttentionTemplate
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (DecodeAttentionTemplate(),)
