"""What the attention templates share: knobs, sizes, counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wattune.ops import operator
from wattune.ops.attention import Attention
from wattune.schedules.cpu.attention.dot import WIDTH, DotScores, DotValues
from wattune.schedules.cpu.attention.kernel import Kernel
from wattune.schedules.cpu.attention.lists import Listed
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.cpu.attention.scores import FmaScores, Scores
from wattune.schedules.cpu.attention.streams import Dense, Stream
from wattune.schedules.cpu.attention.values import FmaValues, Values
from wattune.schedules.program import tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value, powers_of_two
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def lanes_of(problem: Attention, target: Target) -> int:
    """Return the lanes of a vector: what the target has, or what the narrowest row allows."""
    lanes = 16 if target.has("avx512f") else 8 if target.has("avx2", "fma") else 4
    while lanes > min(problem.head_dim, problem.value_dim):
        lanes //= 2
    return lanes


def arithmetic_of(problem: Attention, target: Target) -> tuple[str, ...]:
    """Return what products can be made of: fp32, or pairs of bfloat16."""
    wide = min(problem.head_dim, problem.value_dim) >= WIDTH
    pairs = problem.dtype == "bfloat16" and wide and target.has("avx512f", "avx512_bf16")
    return ("fma", "dot") if pairs else ("fma",)


def registers_of(target: Target) -> int:
    """Return the vector registers of a target."""
    return 32 if target.has("avx512f") or target.arch != "x86_64" else 16


class AttentionTemplate(Template):
    """An attention kernel; a subclass names the operator and what names the keys."""

    stream: ClassVar[type[Stream]]

    def applies(self, problem: Any, target: Target) -> bool:
        """Say yes: there are plain vectors everywhere."""
        return True

    def space(self, problem: Any, target: Target) -> Space:
        """Knobs: tile, folding, unrolling, splits, prefetch, arithmetic."""
        lanes = lanes_of(problem, target)
        registers = registers_of(target)
        arithmetic = arithmetic_of(problem, target)
        most_rows = self.plan_rows(problem)
        rows = tuple(r for r in ROWS if r <= min(most_rows, lanes))
        splits = powers_of_two(1, 64)
        knobs = (
            Knob("block", (16, 32, 64, 128), 32),
            Knob("rows", rows, max(r for r in rows if r <= 4)),
            Knob("unroll", (1, 2, 4), 1),
            Knob("columns", (2, 4, 8), 4),
            Knob("splits", splits, min(splits[-1], self.default_splits(problem, target))),
            Knob("split_tokens", (256, 1024, 4096), 1024),
            Knob("prefetch", (0, 1, 2), 1),
            Knob("scores", arithmetic, arithmetic[-1]),
            Knob("values", arithmetic, arithmetic[-1]),
        )
        del registers
        constraints = (
            Constraint(
                "dots of values pair the keys of a vector of scores: rows must be at most 8",
                lambda v: v["values"] != "dot" or int(v["rows"]) <= lanes // 2,
            ),
        )
        return Space(self.name, knobs, constraints)

    def plan_rows(self, problem: Any) -> int:
        """Return the query rows that share a list of keys."""
        tokens = 1 if getattr(problem, "per_token", False) else problem.query_tokens
        return int(problem.group * tokens)

    def default_splits(self, problem: Any, target: Target) -> int:
        """Return the least power of two of chunks that gives every thread four."""
        splits = 1
        while problem.kv_heads * splits < 4 * target.threads and target.threads > 1:
            splits *= 2
        return splits

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
            scores=str(values["scores"]),
            values=str(values["values"]),
        )

    def parts(self, plan: Plan) -> tuple[Scores, Values, Scratch]:
        """Return the engines of a plan, and its workspace."""
        scores = DotScores(plan) if plan.scores == "dot" else FmaScores(plan)
        values = DotValues(plan) if plan.values == "dot" else FmaValues(plan)
        return scores, values, Scratch.of(plan, scores.query_bytes, values.total_lanes)

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

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernel does."""
        work = operator(self.operator).work(problem)
        return Counts(bytes={"memory": float(work.bytes)}, operations={"fma": work.operations / 2})


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
