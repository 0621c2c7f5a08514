"""What the templates of quantised attention share: knobs, sizes, counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from wattune.ops import operator
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cpu.attention.knobs import CHUNKS, ROWS, lanes_of, registers_of
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.quantized_attention.counts import counts
from wattune.schedules.cpu.quantized_attention.kernel import QuantizedKernel
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import Product
from wattune.schedules.cpu.vector import LANES
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

TILES = (16, 32, 64, 128)


class QuantizedAttentionTemplate(Template):
    """Attention to a quantised cache; a subclass says how codes are multiplied."""

    operator = "quantized_decode_attention"

    @abstractmethod
    def product(self, problem: QuantizedDecodeAttention, target: Target) -> Product:
        """Return how codes are multiplied."""

    def space(self, problem: QuantizedDecodeAttention, target: Target) -> Space:
        """Knobs: tile, rows and vectors of a pass, splits, prefetch; ``ahead`` counts tiles."""
        product, registers = self.product(problem, target), registers_of(target)
        total = problem.group * problem.query_tokens
        most = max(r for r in range(1, 9) if r == 1 or product.registers(r, 1) <= registers)
        # Passes of about as many rows each.
        even = -(-total // -(-total // most))
        rows = tuple(r for r in ROWS if r <= total)
        tiles = tuple(t for t in TILES if problem.block_tokens % t == 0)
        # Tiles of bytes fit the first cache twice, that in work and that on its way; tiles beyond
        # a listed block are work for nothing.
        small = problem.format == "int8" and product.waits
        most_tokens = 64 if small else 128
        most_tokens = max(tiles[0], min(most_tokens, problem.block_size or most_tokens))
        tile = max(t for t in tiles if t <= most_tokens)
        default_rows = max(r for r in rows if r <= even)
        columns = 2 if product.registers(default_rows, 2) <= registers else 1
        splits = 1
        while target.threads > 1 and problem.kv_heads * splits < CHUNKS * target.threads:
            splits *= 2
        knobs = (
            Knob("tile", tiles, tile),
            Knob("rows", rows, default_rows),
            Knob("unroll", (1, 2), 1),
            Knob("columns", (1, 2, 4), columns),
            Knob("splits", (1, 2, 4, 8, *(() if splits <= 8 else (splits,))), splits),
            Knob("split_tokens", (256, 1024), 256),
            Knob("ahead", (0, 1, 2, 4), 1),
        )
        constraints = (
            Constraint(
                "unroll vectors of 16 keys must fit a tile and a group of tokens",
                lambda v: LANES * int(v["unroll"]) <= min(int(v["tile"]), problem.group_size),
            ),
            *(
                Constraint(
                    f"{LANES // product.lanes} * {name} * ({product.terms} * rows + 1) + "
                    f"{product.spare} must fit {registers} vector registers, "
                    f"or rows and {name} be 1",
                    lambda v, name=name: (  # type: ignore[misc]
                        int(v["rows"]) * int(v[name]) == 1
                        or product.registers(int(v["rows"]), int(v[name])) <= registers
                    ),
                )
                for name in ("unroll", "columns")
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
            product=self.product(problem, target),
            rows=int(values["rows"]),
            unroll=int(values["unroll"]),
            columns=int(values["columns"]),
            ahead=int(values["ahead"]),
            inside=not target.has("avx512f"),
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

    def unit(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> str:
        """Return the unit of the products."""
        return self.product(problem, target).unit

    def counts(
        self, problem: QuantizedDecodeAttention, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count what the kernel does."""
        return counts(self.plan(problem, target, values))
