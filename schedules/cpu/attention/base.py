"""The attention templates on vector registers: any target that LLVM compiles for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wattune.ops import operator
from wattune.schedules.cpu.attention.counts import counts
from wattune.schedules.cpu.attention.dot import DotScores, DotValues
from wattune.schedules.cpu.attention.kernel import Kernel
from wattune.schedules.cpu.attention.knobs import constraints, item_rows, knobs, lanes_of
from wattune.schedules.cpu.attention.lists import Listed
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.cpu.attention.scores import FmaScores, Scores
from wattune.schedules.cpu.attention.streams import Dense, Stream
from wattune.schedules.cpu.attention.values import FmaValues, Values
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

# What scores are made of -> unit.
_UNITS = {"dot": "bf16_gflops", "fma": "fma_gflops"}


class AttentionTemplate(Template):
    """An attention kernel; a subclass names the operator and what names the keys."""

    stream: ClassVar[type[Stream]]

    def applies(self, problem: Any, target: Target) -> bool:
        """Say yes: there are plain vectors everywhere."""
        return True

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs: tile, folding, unrolling, splits, prefetch, arithmetic."""
        return Space(self.name, knobs(problem, target), constraints(problem, target))

    def plan_rows(self, problem: Any) -> int:
        """Return the query rows that share a list of keys."""
        return item_rows(problem)

    def plan(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Plan:
        """Return the schedule."""
        block = int(values["block"])
        return Plan(
            problem=problem,
            threads=target.threads,
            lanes=lanes_of(problem, target),
            block=block,
            rows=int(values["rows"]),
            unroll=int(values["unroll"]),
            columns=int(values["columns"]),
            splits=int(values["splits"]),
            split_tiles=max(1, int(values["split_tokens"]) // block),
            prefetch=int(values["prefetch"]),
            wake=int(values["wake"]),
            level=int(values["level"]),
            stretch=int(values["stretch"]),
            streams=int(values.get("streams", 1)),
            scores=str(values["scores"]),
            values=str(values["values"]),
        )

    def parts(self, plan: Plan) -> tuple[Scores, Values, Scratch]:
        """Return the engines of a plan, and its workspace."""
        scores, values = self.engines(plan)
        return scores, values, Scratch.of(plan, scores.query_bytes, values.total_lanes)

    def engines(self, plan: Plan) -> tuple[Any, Any]:
        """Return what scores tiles and what sums their values."""
        return (
            DotScores(plan) if plan.scores == "dot" else FmaScores(plan),
            DotValues(plan) if plan.values == "dot" else FmaValues(plan),
        )

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """The caller's: kernels read the cache as it lies."""
        return Layout.make(problem.layout)

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """Bytes of the workspace."""
        return {"workspace_bytes": self.parts(self.plan(problem, target, values))[2].bytes}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the kernel."""
        plan = self.plan(problem, target, values)
        scores, weighted, scratch = self.parts(plan)
        kernel = Kernel(plan, scratch, scores, weighted, self.stream)
        arguments = operator(self.operator).arguments(problem)
        return tensor_program(arguments, self.sizes(problem, target, values), kernel.emit)

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return nothing: nothing is packed."""
        return {}

    def unit(self, problem: Any, target: Target, values: Mapping[str, Value]) -> str:
        """Return the unit of scores."""
        return _UNITS.get(self.plan(problem, target, values).scores, "")

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does."""
        plan = self.plan(problem, target, values)
        return counts(plan, *self.engines(plan))


class DecodeAttentionTemplate(AttentionTemplate):
    """Dense or windowed attention."""

    name = "decode_attention"
    operator = "decode_attention"
    stream = Dense


class BlockSparseTemplate(AttentionTemplate):
    """Attention to listed blocks."""

    name = "block_sparse_decode_attention"
    operator = "block_sparse_decode_attention"
    stream = Listed


class TokenSparseTemplate(AttentionTemplate):
    """Attention to listed tokens."""

    name = "token_sparse_decode_attention"
    operator = "token_sparse_decode_attention"
    stream = Listed


class RectifyTemplate(AttentionTemplate):
    """New rows, then dense attention."""

    name = "rectify_attention"
    operator = "rectify_attention"
    stream = Dense
