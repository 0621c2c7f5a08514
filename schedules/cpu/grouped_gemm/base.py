"""What the templates of grouped GEMM and of fused mixture of experts share."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

from wattune.ops import operator
from wattune.ops.experts import touched
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.grouped_gemm.counts import count
from wattune.schedules.cpu.grouped_gemm.kernel import Kernel, Names
from wattune.schedules.cpu.grouped_gemm.layout import ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import Plan, Stage
from wattune.schedules.cpu.grouped_gemm.tile import FAR, Engine
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

ROW_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
PARTS = (1, 2, 4, 8, 16)
PREFETCHES = (0, 1024, 2048, 4096, 8192, 16384, FAR)
# Columns of a slice and blocks of a panel; 0: all.
COLUMNS = (0, 256, 512, 1024, 2048)
PANELS = (1, 4, 16, 0)
GATE_UP = ("separate", "fused")
# The rows of gate and those of up, each from a block of its own on.
HALVES = 2
# Reading an expert once for each of its rows costs at most this much more.
_REPEATED = 1.02


class ExpertTemplate(Template):
    """A template of the phases in `kernel`; subclasses know the operator, and the instructions."""

    names: ClassVar[Names]
    # Sums of 16 rows that registers hold beside the vectors of weights, all counted.
    registers: ClassVar[int]
    # Rows of the smallest tile.
    least_rows: ClassVar[int] = 1
    # Whether tiles can fetch the block after theirs, and do so by default where they are many.
    next_block: ClassVar[tuple[bool, ...]] = (False, True)
    fetches_next: ClassVar[bool] = True
    # How many bytes ahead a stream is fetched by default.
    prefetch: ClassVar[int] = 4096

    @abstractmethod
    def products(self, problem: Any, groups: int) -> tuple[ExpertLayout, ...]:
        """Return the packed weights in the order of use."""

    @abstractmethod
    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return how products are made; None where the target cannot."""

    def _engine(self, problem: Any, target: Target) -> Engine:
        engine = self.engine(problem, target)
        assert engine is not None
        return engine

    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether the target has the instructions."""
        return self.engine(problem, target) is not None

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs: interleave, rows at once, order, parts, slices and panels, prefetch, unrolling."""
        single = problem.tokens * problem.top_k <= _REPEATED * touched(problem)
        blocks, groups = self.row_blocks(problem.tokens), self.default_groups(problem, target)
        # Tiles are made for fewer rows too, so that many at once cost nothing where there are few.
        limit = self.most_rows(problem, target)
        most = [r for r in blocks if r <= limit and self.sums(groups, r) <= self.registers][-1]
        rows = blocks[0] if single else most
        # Only where there are two full tiles of a block can they share in fetching the next one.
        several = problem.tokens * problem.top_k >= 2 * rows * touched(problem)
        parts = sorted({*PARTS, target.threads})
        knobs = (
            Knob("groups", (1, 2, 4), groups, layout=True),
            Knob("row_block", blocks, rows),
            Knob("order", ("expert", "pair"), "pair" if single else "expert"),
            Knob("parts", tuple(parts), target.threads),
            *self.own_knobs(),
            Knob("columns", self.columns(problem), 0),
            Knob("panel", PANELS, 1),
            Knob("prefetch", PREFETCHES, self.default_prefetch(problem, target)),
            Knob("next_block", self.next_block, several and self.fetches_next),
            Knob("unroll", (1, 2, 4), self._engine(problem, target).unroll),
        )
        constraints = (
            Constraint(
                f"groups and row_block must fit {self.registers} sums",
                lambda v: all(
                    self.sums(stage.groups, stage.row_block) <= self.registers
                    for stage in self.stages(problem, v)
                ),
            ),
            Constraint(
                "panels of several blocks are for slices of columns",
                lambda v: v["panel"] == 1 or v["columns"] != 0,
            ),
            Constraint(
                "pairs one by one have one row each",
                lambda v: v["order"] == "expert" or v["row_block"] == 1,
            ),
        )
        return Space(self.name, knobs, constraints)

    def default_prefetch(self, problem: Any, target: Target) -> int:
        """Return how many bytes ahead a stream is fetched by default."""
        del problem, target
        return self.prefetch

    def default_groups(self, problem: Any, target: Target) -> int:
        """Return how many groups of 16 rows interleave where nothing is known."""
        del problem, target
        return 2

    def most_rows(self, problem: Any, target: Target) -> int:
        """Return how many rows at once the default has at most, if so many fit the registers."""
        del target
        return self.row_blocks(problem.tokens)[-1]

    def own_knobs(self) -> tuple[Knob, ...]:
        """Return the knobs that the operator has beside the others: none."""
        return ()

    def columns(self, problem: Any) -> tuple[int, ...]:
        """Return the slices of columns that there can be: fewer than the longest row."""
        longest = max(p.columns for p in self.products(problem, 1))
        return tuple(c for c in COLUMNS if c < longest)

    def stages(self, problem: Any, values: Mapping[str, Value]) -> tuple[Stage, ...]:
        """Return the products with how they are made."""
        rows, slices = int(values["row_block"]), (int(values["columns"]), int(values["panel"]))
        products = self.products(problem, int(values["groups"]))
        return tuple(Stage(product, rows, 1, *slices) for product in products)

    def row_blocks(self, tokens: int) -> tuple[int, ...]:
        """Return how many rows can be multiplied at once: an expert has at most ``tokens``."""
        return tuple(r for r in ROW_BLOCKS if r <= tokens)

    def sums(self, groups: int, row_block: int) -> int:
        """Count the registers of sums, and of the vectors of weights."""
        return groups * (row_block + 1)

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """The format and how many groups of 16 rows interleave."""
        return Layout.make(problem.format, groups=values["groups"])

    def plan(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Plan:
        """Return the sizes of a kernel."""
        engine = self._engine(problem, target)
        plan = Plan(
            tokens=problem.tokens,
            top_k=problem.top_k,
            experts=problem.num_experts,
            threads=target.threads,
            stages=self.stages(problem, values),
            activation=engine.activation,
            order=str(values["order"]),
            parts=int(values["parts"]),
            prefetch=int(values["prefetch"]),
            next_block=bool(values["next_block"]),
            unroll=int(values["unroll"]),
        )
        return dataclasses.replace(plan, scratch=engine.scratch_bytes(plan))

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """Bytes of the packed weights and of the workspace."""
        plan = self.plan(problem, target, values)
        packed = zip(self.names.weights, plan.products, strict=True)
        found = {f"{name}_bytes": product.bytes for name, product in packed}
        return {**found, "workspace_bytes": plan.areas.bytes}

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return the programs that pack the weights."""
        arguments = {a.name: a for a in operator(self.operator).arguments(problem)}
        products = self.products(problem, int(values["groups"]))
        packed = zip(self.names.weights, products, strict=True)
        return {name: product.pack_program(arguments[name]) for name, product in packed}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the kernel."""
        return self.lower_phase(problem, target, values, "")

    def lower_phase(
        self, problem: Any, target: Target, values: Mapping[str, Value], phase: str
    ) -> Any:
        """Return a kernel of one phase only: what `benchmarks/moe_phases.py` times."""
        engine = self._engine(problem, target)
        plan = self.plan(problem, target, values)
        kernel = Kernel(plan, engine, self.names, problem.dtype, phase)

        def body(tensors: Tensors) -> None:
            with vector.bf16_functions() if engine.activation == "bf16" else nullcontext():
                kernel.emit(tensors)

        sizes = self.sizes(problem, target, values)
        return tensor_program(operator(self.operator).arguments(problem), sizes, body)

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does for the experts that the problem's routing touches."""
        return count(self.plan(problem, target, values), touched(problem))


class GroupedGemmTemplate(ExpertTemplate):
    """One product."""

    operator = "grouped_gemm"
    names = Names("x", ("w",), "", "y")

    def products(self, problem: Any, groups: int) -> tuple[ExpertLayout, ...]:
        """Return the weights."""
        sizes = problem.num_experts, problem.out_features, problem.in_features
        return (ExpertLayout(problem.format, *sizes, groups),)


class FusedMoeTemplate(ExpertTemplate):
    """Gate and up in one product, then down."""

    operator = "fused_moe"
    names = Names("hidden_states", ("w1", "w2"), "topk_weights", "out")

    def products(self, problem: Any, groups: int) -> tuple[ExpertLayout, ...]:
        """Return the weights of gate and up, and of down."""
        count, hidden, inner = problem.num_experts, problem.hidden_size, problem.intermediate_size
        return (
            ExpertLayout(problem.format, count, 2 * inner, hidden, groups, HALVES),
            ExpertLayout(problem.format, count, hidden, inner, groups),
        )

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """The same, and that each half of `w1` begins with a block: packs once were otherwise."""
        return Layout.make(problem.format, groups=values["groups"], halves=HALVES)

    def own_knobs(self) -> tuple[Knob, ...]:
        """Whether gate and up are made in one pass over the activations, side by side."""
        return (Knob("gate_up", GATE_UP, "separate"),)

    def stages(self, problem: Any, values: Mapping[str, Value]) -> tuple[Stage, ...]:
        """Return the products; gate and up side by side take half as many rows at once."""
        gate_up, down = super().stages(problem, values)
        if values["gate_up"] == "fused":
            rows = max(self.least_rows, gate_up.row_block // 2)
            gate_up = dataclasses.replace(gate_up, streams=2, row_block=rows)
        return gate_up, down
