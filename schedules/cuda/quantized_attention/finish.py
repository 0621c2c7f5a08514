"""What a warp has summed up goes where the block's warps are merged."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.teams import Teams
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import COLUMNS, PART, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.softmax import (
    WEIGHT_UNIT,
    State,
    sum_over_rows,
)

Expr = Any


def spread(plan: QuantizedPlan, place: Place, state: State, teams: Teams) -> None:
    """Store sums, references and totals: of each row, a lane has 4 of 32 channels."""
    for panel in range(plan.panels):
        for i in range(2):
            at = 2 * panel + i
            sum_over_rows(state.totals, at)
            row = T.bind(place.warp * plan.rows + COLUMNS * panel + 2 * place.column + i)
            base = T.bind(row * teams.stride + place.row * 4)
            for load in range(plan.value_loads):
                pairs = [state.places(panel, load, pair) for pair in range(2)]
                for x in range(4):
                    value = pairs[x // 2][2 * (x % 2) + i] * T.float32(1 / WEIGHT_UNIT)
                    ptx.put(teams.sums, base + load * PART + x, value)
            with T.If(place.row == 0), T.Then():
                ptx.put(teams.state, row * 2, state.references[at])
                ptx.put(teams.state, row * 2 + 1, state.totals[at])
