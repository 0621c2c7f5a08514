"""CUDA templates of decode attention, one generator of kernels for all; merging of states.

What limits them, by the main loops' machine code on an H200 (`benchmarks/gpu/issue.py`): clocks
of an SM's units over those in which memory brings the loop's bytes, default schedules.

| query rows | issue | tensor cores | ex2 | shuffles | shared memory |
|--:|--:|--:|--:|--:|--:|
| 8 (group of 8) | 0.15 | 0.07 | 0.03 | 0.06 | 0.32 |
| 16 (group of 16) | 0.20 | 0.14 | 0.05 | 0.05 | 0.32 |
| 64 (group of 16, 4 tokens), warps of 16 rows | 0.43 | 0.54 | 0.15 | 0.10 | 0.81 |
| 64, a warpgroup | 0.41 | 0.32 | 0.15 | 0.10 | 0.32 |

So the exponentials never are the limit of 16-bit caches, and ``polynomial`` is 0 by default. Tensor
cores fed by `wgmma` read a tile once for 64 rows instead of once a warp; below 49 rows many of
their 64 rows would be empty, and memory is the limit anyway.
"""

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
