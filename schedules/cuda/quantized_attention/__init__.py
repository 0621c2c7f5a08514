"""CUDA templates of quantised attention."""

from __future__ import annotations

from wattune.schedules.cuda.quantized_attention.template import QuantizedAttention
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (QuantizedAttention(),)
