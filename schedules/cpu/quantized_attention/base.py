"""What the templates of quantised attention share: knobs, sizes, counts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from wattune.ops import operator
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cpu.attention.base import DecodeAttentionTemplate
from wattune.schedules.cpu.attention.knobs import lanes_of
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.quantized_attention.kernel import QuantizedKernel
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import Product
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value, powers_of_two
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


class QuantizedAttentionTemplate(Template):
    """Attention to a quantised cache; a subclass says how codes are multiplied."""

    operator = "quantized_decode_attention"

    def source_hash(self) -> str:
        """Digest what is shared with dense attention too."""
        both = super().source_hash() + DecodeAttentionTemplate().source_hash()
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    @abstractmethod
    def product(self, target: Target) -> Product:
        """Return how codes are multiplied."""

    def space(self, problem: QuantizedDecodeAttention, target: Target) -> Space:
        """Knobs: tile, rows and vectors of a pass, splits, prefetch."""
        rows = tuple(r for r in ROWS if r <= problem.group * problem.query_tokens)
        tiles = tuple(t for t in (16, 32, 64, 128) if problem.block_tokens % t == 0)
        knobs = (
            Knob("tile", tiles, max(t for t in tiles if t <= 64)),
            Knob("rows", rows, max(r for r in rows if r <= 4)),
            Knob("unroll", (1, 2, 4), 1),
            Knob("columns", (1, 2, 4), 2),
            Knob("splits", powers_of_two(1, 64), 1),
            Knob("split_tokens", (256, 1024, 4096), 1024),
            Knob("ahead", (0, 1, 2, 4, 6), 1),
        )
        constraints = (
            Constraint(
                "unroll vectors of 16 keys must fit a tile and a group of tokens",
                lambda v: 16 * int(v["unroll"]) <= min(int(v["tile"]), problem.group_size),
            ),
        )
        return Space(self.name, knobs, constraints)

    def plan(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> QuantizedPlan:
        """Return the schedule."""
        tile = int(values["tile"])
        base = Plan(
            problem=problem,
            threads=target.threads,
            lanes=lanes_of(problem, target),
            block=tile,
            rows=1,
            unroll=1,
            columns=4,
            splits=int(values["splits"]),
            split_tiles=max(1, int(values["split_tokens"]) // tile),
            prefetch=0,
            scores="fma",
            values="fma",
        )
        return QuantizedPlan(
            base=base,
            problem=problem,
            product=self.product(target),
            rows=int(values["rows"]),
            unroll=int(values["unroll"]),
            columns=int(values["columns"]),
            ahead=int(values["ahead"]),
        )

    def layout(self, problem: QuantizedDecodeAttention, values: Mapping[str, Value]) -> Layout:
        """The operator's own: kernels read the cache as it lies."""
        return Layout.make(problem.format)

    def sizes(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the workspace."""
        return {"workspace_bytes": self.plan(problem, target, values).scratch().bytes}

    def lower(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Any:
        """Return the kernel."""
        kernel = QuantizedKernel(self.plan(problem, target, values))
        arguments = operator(self.operator).arguments(problem)
        return tensor_program(arguments, self.sizes(problem, target, values), kernel.emit)

    def pack(
        self, problem: QuantizedDecodeAttention, values: Mapping[str, Value]
    ) -> dict[str, Any]:
        """Return nothing: caches are packed token by token."""
        return {}

    def counts(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count."""
        work = operator(self.operator).work(problem)
        return Counts(bytes={"memory": float(work.bytes)}, operations={"dot": work.operations / 2})
