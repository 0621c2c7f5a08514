"""Template of `moe_gate`: products of float32 on vectors of any width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm.script import tirx as T

from wattune.ops import operator
from wattune.ops.dtypes import itemsize
from wattune.ops.moe_gate import MoeGate
from wattune.ops.operator import Argument
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import lane_counts
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.cpu.routing.gate_kernel import GateKernel
from wattune.schedules.cpu.routing.gate_plan import GatePlan
from wattune.schedules.cpu.routing.loads import Loads, stored
from wattune.schedules.cpu.rows import flat
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout

_TOKENS = (1, 2, 3, 4, 6, 8, 12)
# Tokens that are held as float32, about: half of a second cache of 1 MiB at 4096 columns.
_BLOCK = 32
# More tokens at once than fit in so many registers are no faster.
_REGISTERS = 24


class MoeGateVector(PlainTemplate):
    """Vectors of any width, for any target that LLVM knows."""

    name = "moe_gate_vector"
    operator = "moe_gate"

    def applies(self, problem: MoeGate, target: Target) -> bool:
        """Say whether half precision needs no library."""
        halves = "float16" in (problem.dtype, problem.weight_dtype)
        return not halves or target.arch != "x86_64" or target.has("f16c")

    def space(self, problem: MoeGate, target: Target) -> Space:
        """Knobs: lanes, experts and tokens at once, groups, parts of columns, prefetch."""
        lanes, registers = lane_counts(target), _registers(target)
        tokens = tuple(t for t in _TOKENS if t < 2 * problem.tokens)
        fitting = [t for t in tokens if 4 * t + 5 <= min(registers, _REGISTERS)]
        # As few passes as fit, of as few tokens each.
        passes = -(-problem.tokens // fitting[-1])
        each = next(t for t in fitting if t * passes >= problem.tokens or t == fitting[-1])
        groups = tuple(g for g in (1, 2, 4, 8, 16) if g < 2 * -(-problem.tokens // each))
        enough = [g for g in groups if g * each <= _BLOCK] or [1]
        knobs = (
            Knob("lanes", lanes, lanes[-1], layout=True),
            Knob("rows", (2, 3, 4, 8), 4, layout=True),
            Knob("tokens", tokens, each),
            Knob("groups", groups, enough[-1]),
            Knob("depth", (0, 16, 32, 64), 32, layout=True),
            Knob("prefetch", (0, 1024, 2048, 4096, 8192, 16384), 8192),
            Knob("unroll", (1, 2, 4), 1),
        )
        rules = (
            Constraint(
                f"sums, weights and a token must fit {registers} registers",
                lambda v: int(v["rows"]) * (int(v["tokens"]) + 1) + 1 <= registers,
            ),
        )
        return Space(self.name, knobs, rules)

    def layout(self, problem: MoeGate, values: Mapping[str, Value]) -> Layout:
        """Return how experts interleave, in vectors and in parts of how many columns."""
        names = ("lanes", "rows", "depth")
        return Layout.make(problem.weight_dtype, **{name: values[name] for name in names})

    def plan(self, problem: MoeGate, threads: int, values: Mapping[str, Value]) -> GatePlan:
        """Return the sizes of a kernel."""
        return GatePlan(problem, threads, **{name: int(value) for name, value in values.items()})

    def sizes(
        self, problem: MoeGate, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the packed weight and of the workspace."""
        plan = self.plan(problem, target.threads, values)
        return {"weight_bytes": plan.weight_bytes, "workspace_bytes": plan.bytes}

    def body(
        self, problem: MoeGate, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        plan = self.plan(problem, target.threads, values)

        def emit(tensors: Tensors) -> None:
            rows = flat(tensors["hidden_states"], stored(problem.dtype))
            kind, size = stored(problem.weight_dtype), itemsize(problem.weight_dtype)
            weight = T.decl_buffer(
                (plan.weight_bytes // size,), kind, data=tensors["weight"].data, align=64
            )
            workspace = T.decl_buffer(
                (plan.bytes // 4,), "float32", data=tensors["workspace"].data, align=64
            )
            GateKernel(
                plan,
                Loads(rows, problem.dtype, problem.hidden_size, plan.lanes),
                Loads(weight, problem.weight_dtype, 0, plan.lanes),
                workspace,
                flat(tensors["router_logits"]),
            ).emit(tensors.sizes["tokens"])

        return emit

    def pack(self, problem: MoeGate, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return the program that packs the weight."""
        plan = self.plan(problem, 1, values)
        arguments = {a.name: a for a in operator(self.operator).arguments(problem)}
        return {"weight": _pack(plan, arguments["weight"])}

    def counts(self, problem: MoeGate, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count products, loads of weights for each block, and of tokens for each tile."""
        plan = self.plan(problem, target.threads, values)
        groups = -(-problem.tokens // plan.tokens)
        blocks = -(-problem.tokens // plan.block)
        steps = float(groups * plan.tiles * plan.steps)
        rows = float(4 * groups * plan.tiles * plan.group_values)
        turns = 8.0 * groups * plan.tiles * plan.parts * plan.sums if plan.parts > 1 else 0.0
        widened = itemsize(problem.weight_dtype) < 4
        return Counts(
            bytes={
                "memory": float(operator(self.operator).work(problem).bytes),
                "l3": float(blocks * plan.weight_bytes),
                "l2": float(blocks * plan.weight_bytes) + rows / 2 + turns,
                "l1": float(groups * plan.weight_bytes) + rows + turns,
            },
            operations={"alu": steps * plan.rows * (plan.tokens + 2 * widened)},
            tiles={
                "lanes": float(plan.lanes),
                "rows": float(plan.rows),
                "tokens": float(plan.tokens),
                "block": float(plan.block),
            },
            parallelism=float(plan.tiles),
            registers=plan.rows * (plan.tokens + 1.0) + 1.0,
            code=float(plan.unroll * plan.rows * (plan.tokens + 1)),
        )


def _registers(target: Target) -> int:
    """Return the vector registers."""
    return 32 if target.has("avx512f", "avx512vl") else 16


def _pack(plan: GatePlan, argument: Argument) -> Any:
    """Return the PrimFunc (source, packed)."""
    assert argument.source is not None
    source, problem = argument.source, plan.problem
    kind = stored(source.dtype)

    def body(tensors: Tensors) -> None:
        rows = flat(tensors[source.name], kind)
        count = plan.weight_bytes // itemsize(source.dtype)
        packed = T.decl_buffer((count,), kind, data=tensors[argument.name].data, align=64)
        with T.grid(plan.tiles, plan.steps, plan.rows, plan.lanes) as (tile, step, row, lane):
            expert, column = T.bind(tile * plan.rows + row), T.bind(step * plan.lanes + lane)
            inside = T.And(expert < problem.num_experts, column < problem.hidden_size)
            # Parts before, tiles before, steps before.
            depth = plan.depth or plan.steps
            start = T.bind(T.truncdiv(step, depth) * depth)
            size = T.bind(T.min(plan.steps - start, depth))
            vectors = T.cast(start * plan.tiles + tile * size + step - start, "int64")
            to = T.bind((vectors * plan.rows + row) * plan.lanes + lane)
            vector.store(packed, [to], T.Cast(kind, 0))
            with T.If(inside), T.Then():
                at = T.cast(expert, "int64") * problem.hidden_size + column
                vector.store(packed, [to], rows[at])

    return tensor_program((source, argument), {"weight_bytes": plan.weight_bytes}, body)
