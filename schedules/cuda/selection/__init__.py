"""CUDA templates of block selection: key bounds, scores, the learned gate."""

from __future__ import annotations

from wattune.schedules.cuda.selection.compress import AttnGateCompressGpu
from wattune.schedules.cuda.selection.gate import AttnGateGpu
from wattune.schedules.cuda.selection.minmax import BlockMinmaxGpu
from wattune.schedules.cuda.selection.score import BlockScoreGpu
from wattune.schedules.cuda.selection.select_blocks import SelectBlocksGpu
from wattune.schedules.cuda.selection.select_union import SelectUnionGpu
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    BlockMinmaxGpu(),
    BlockScoreGpu(),
    AttnGateCompressGpu(),
    AttnGateGpu(),
    SelectBlocksGpu(),
    SelectUnionGpu(),
)
