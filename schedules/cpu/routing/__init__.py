"""CPU templates of routing tokens to experts."""

from __future__ import annotations

from wattune.schedules.cpu.routing.align import MoeAlignCount
from wattune.schedules.cpu.routing.gate import MoeGateVector
from wattune.schedules.cpu.routing.topk import MoeTopkVector
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (MoeGateVector(), MoeTopkVector(), MoeAlignCount())
