"""CUDA templates that write quantised KV caches: whole prompts, and tokens as they come."""

from __future__ import annotations

from wattune.schedules.cuda.quantized_kv_cache.append import QuantizedAppend
from wattune.schedules.cuda.quantized_kv_cache.quantize import QuantizePrompts
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (QuantizePrompts(), QuantizedAppend())
