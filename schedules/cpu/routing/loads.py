"""Logits of each dtype as fp32 vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.routing.plan import Plan

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Logits:
    """Loads from a flat buffer of float32, float16 or the bits of bfloat16."""

    buffer: Buffer
    dtype: str
    plan: Plan

    def load(self, token: Expr, at: int) -> Expr:
        """Load vector ``at`` of a token's row; lanes beyond its end repeat its last value."""
        lanes, experts = self.plan.lanes, self.plan.routing.num_experts
        start = T.cast(token, "int64") * experts
        kind = "uint16" if self.dtype == "bfloat16" else self.dtype
        first = at * lanes
        if first + lanes <= experts:
            return self._widened(self.buffer.vload([start + first], f"{kind}x{lanes}"))
        last = vector.array(lanes, kind)
        for lane in range(lanes):
            vector.store(last, [lane], self.buffer[start + min(first + lane, experts - 1)])
        return self._widened(last.vload([0], f"{kind}x{lanes}"))

    def _widened(self, values: Expr) -> Expr:
        lanes = self.plan.lanes
        if self.dtype != "bfloat16":
            return T.cast(values, f"float32x{lanes}")
        bits = T.cast(values, f"uint32x{lanes}")
        wide = T.shift_left(bits, T.broadcast(T.uint32(16), lanes))
        return T.reinterpret(f"float32x{lanes}", wide)
