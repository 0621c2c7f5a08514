"""From sums to outputs: the last step of a row.

out = acc / (l + 2^(sink - m));  lse = ln(2) (m + log2 l)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.attention.softmax import LN_2, LOG2_E
from wattune.schedules.cuda.kernel import Block

Expr = Any

# Sums that a lane takes at once: 16 bytes.
WIDE = 4
# A sink of infinity takes all weight: beyond this it would meet itself as inf - inf.
_MOST = 3e38
_LEAST = 1e-30


@dataclass(frozen=True)
class Output:
    """Emits what becomes of the sums of an item's rows."""

    plan: Shares
    block: Block
    item: Item

    def store(self, row: Expr, column: Expr, m: Expr, total: Expr, sums: list[Expr]) -> None:
        """Store 4 columns of a row's output; those of column 0 store its lse."""
        problem = self.plan.problem
        token = T.cast(self.item.request, "int64") * problem.query_tokens + self.item.part
        head = T.bind(self.item.head * problem.group + row % problem.group)
        at = T.bind((token + row // problem.group) * problem.query_heads + head)
        factor = T.bind(self._factor(m, total, head))
        words, out = ptx.registers(2, "uint32"), self.block.view("out", "uint32")
        place = T.bind((at * problem.value_dim + column) // 2)
        for i in range(2):
            low, high = sums[2 * i] * factor, sums[2 * i + 1] * factor
            ptx.pack(words[i], low, high, problem.dtype)
            ptx.put(out, place + i, words[i])
        if problem.return_lse:
            with T.If(column == 0), T.Then():
                lse = (m + ptx.log2(T.max(total, T.float32(_LEAST)))) * T.float32(LN_2)
                empty = total <= T.float32(0)
                found = T.Select(empty, T.float32(float("-inf")), lse)
                ptx.put(self.block.view("lse", "float32"), at, found)

    def _factor(self, m: Expr, total: Expr, head: Expr) -> Expr:
        """Return what a row's sums are multiplied by; 0 where nothing was seen."""
        least = T.float32(_LEAST)
        if not self.plan.problem.sinks:
            found = T.float32(1) / T.max(total, least)
        else:
            logit = self.block.view("sinks", "float32")[T.cast(head, "int64")]
            sink = T.bind(T.min(logit * T.float32(LOG2_E), T.float32(_MOST)))
            top = T.bind(T.max(m, sink))
            weight = T.bind(ptx.exp2(m - top))
            found = weight / T.max(total * weight + ptx.exp2(sink - top), least)
        return T.Select(total <= T.float32(0), T.float32(0), found)
