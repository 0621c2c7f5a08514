"""CPU templates that move rows of keys, values and outputs: append to a cache, merge states."""

from __future__ import annotations

from wattune.schedules.cpu.kv_cache.append import KVCacheAppendCopy
from wattune.schedules.cpu.kv_cache.merge import MergeStatesVector
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (KVCacheAppendCopy(), MergeStatesVector())
