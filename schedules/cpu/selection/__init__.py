"""CPU templates of block selection: key bounds, scores, the learned gate."""

from __future__ import annotations

from wattune.schedules.cpu.selection.compress import AttnGateCompressVector
from wattune.schedules.cpu.selection.gate import AttnGateVector
from wattune.schedules.cpu.selection.minmax import BlockMinmaxVector
from wattune.schedules.cpu.selection.score import BlockScoreVector
from wattune.schedules.cpu.selection.select_blocks import SelectBlocksVector
from wattune.schedules.cpu.selection.select_union import SelectUnionSort
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    BlockMinmaxVector(),
    BlockScoreVector(),
    AttnGateCompressVector(),
    AttnGateVector(),
    SelectBlocksVector(),
    SelectUnionSort(),
)
