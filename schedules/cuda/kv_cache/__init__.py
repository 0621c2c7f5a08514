"""CUDA templates that move rows of keys and values: append to a cache."""

from __future__ import annotations

from wattune.schedules.cuda.kv_cache.append import KVCacheAppendGpu
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (KVCacheAppendGpu(),)
