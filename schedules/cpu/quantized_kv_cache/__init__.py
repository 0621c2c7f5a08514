"""CPU templates that write quantised KV caches: whole prompts, and tokens as they come."""

from __future__ import annotations

from wattune.schedules.cpu.quantized_kv_cache.append import (
    AppendAVX2,
    AppendAVX512,
    AppendPortable,
)
from wattune.schedules.cpu.quantized_kv_cache.quantize import (
    QuantizeAVX2,
    QuantizeAVX512,
    QuantizePortable,
)
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    QuantizeAVX512(),
    QuantizeAVX2(),
    QuantizePortable(),
    AppendAVX512(),
    AppendAVX2(),
    AppendPortable(),
)
