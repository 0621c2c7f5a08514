"""Template of `merge_states`: one pass over the log-sum-exps, one over the outputs.

    for token, head:
        top = max of lse[states] that are not infinite, NOTHING where there is none
        for 16 states at once: w = exp2((lse - top) log2 e); total += w
            for state: acc += w[state] * partial_out[state, :]      # no product where w is 0
        out, lse = acc / total, top + log(total)

States lie in the lanes while they are weighed, columns of the output while they are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.merge_states import MergeStates
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.kv_cache.base import (
    Buffer,
    Expr,
    fitting,
    flat,
    grain_knob,
    spread,
    starts,
)
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_MOST_COLUMNS = 8


class MergeStatesVector(PlainTemplate):
    """fp32 vectors, for any target."""

    name = "merge_states_vector"
    operator = "merge_states"

    def applies(self, problem: MergeStates, target: Target) -> bool:
        """Say whether half precision needs no library."""
        return problem.dtype != "float16" or target.arch != "x86_64" or target.has("f16c")

    def space(self, problem: MergeStates, target: Target) -> Space:
        """Knobs: lanes, vectors of a row summed at once, rows a task."""
        widest = 16 if target.has("avx512f") else 8 if target.has("avx2", "fma") else 4
        lanes = tuple(n for n in (4, 8, 16) if n <= widest)
        knobs = (
            Knob("lanes", lanes, widest),
            Knob("columns", (2, 4, 8), _MOST_COLUMNS),
            grain_knob((problem.states + 1) * problem.head_dim * itemsize(problem.dtype)),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: MergeStates, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        lanes, columns, grain = (int(values[name]) for name in ("lanes", "columns", "grain"))
        return Kernel(
            problem=problem,
            threads=target.threads,
            state_lanes=_states_at_once(problem, lanes),
            lanes=fitting(problem.head_dim, lanes),
            columns=columns,
            grain=grain,
        ).emit

    def counts(self, problem: MergeStates, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count a load, a selection and a product a vector, and the exponentials."""
        rows, lanes = problem.tokens * problem.heads, int(values["lanes"])
        columns = int(values["columns"])
        passes = -(-problem.head_dim // (lanes * columns))
        weighed = -(-problem.states // _states_at_once(problem, lanes))
        row_bytes = (problem.states + 1) * (problem.head_dim * itemsize(problem.dtype) + 4)
        moved = float(rows * row_bytes)
        summed = rows * problem.states * -(-problem.head_dim // lanes)
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": float(3 * summed + 20 * rows * weighed * passes)},
            tiles={"rows": float(rows), "passes": float(passes)},
            parallelism=-(-rows // int(values["grain"])),
            registers=columns + 3.0,
            code=3.0 * columns,
        )


def _states_at_once(problem: MergeStates, lanes: int) -> int:
    """Return how many states are weighed at once: no more than there are, rounded up."""
    return min(lanes, 1 << (problem.states - 1).bit_length())


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel: ``lanes`` columns in each of at most ``columns`` vectors at once."""

    problem: MergeStates
    threads: int
    state_lanes: int
    lanes: int
    columns: int
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Merge every token's heads."""
        problem = self.problem
        kind = problem.dtype if problem.dtype != "bfloat16" else "uint16"
        partial, out = (flat(tensors[name], kind) for name in ("partial_out", "out"))
        lses, lse = (flat(tensors[name], "float32") for name in ("partial_lse", "lse"))

        def row(index: Expr) -> None:
            token = T.bind(T.truncdiv(index, problem.heads))
            head = index - token * problem.heads
            first = T.cast(token, "int64") * (problem.states * problem.heads) + head
            self._row(partial, lses, T.bind(first), out, lse, T.cast(index, "int64"))

        rows = tensors.sizes["tokens"] * problem.heads
        spread(self.threads, problem.tokens * problem.heads, rows, self.grain, row)

    def _row(
        self, partial: Buffer, lses: Buffer, first: Expr, out: Buffer, lse: Buffer, row: Expr
    ) -> None:
        """Merge the states of one head; ``first`` is the row of state 0."""
        top = self._top(lses, first)
        places = starts(self.problem.head_dim, self.lanes)
        for at in range(0, len(places), self.columns):
            columns = places[at : at + self.columns]
            total = self._sum(partial, lses, first, top, columns, out, row)
        # No state: 2^-126 log2 e lies beyond what counts, and `top` says so.
        found = math.log2(T.max(total, T.float32(2.0**-126)), 1) * T.float32(math.LN_2) + top
        least = T.float32(float("-inf"))
        vector.store(lse, [row], T.Select(total > T.float32(0), found, least))

    def _top(self, lses: Buffer, first: Expr) -> Expr:
        """Return the greatest finite log-sum-exp."""
        top = vector.array(1, "float32")
        vector.store(top, [0], T.float32(math.NOTHING))
        with T.serial(self.problem.states) as state:
            value = T.bind(self._lse(lses, first, state))
            vector.store(top, [0], T.max(top[0], value))
        return T.bind(top[0])

    def _lse(self, lses: Buffer, first: Expr, state: Expr) -> Expr:
        """Return a state's log-sum-exp; -inf for +inf, which some libraries write for "empty"."""
        value = T.bind(lses[first + state * self.problem.heads])
        infinite = value.equal(T.float32(float("inf")))
        return T.Select(infinite, T.float32(float("-inf")), value)

    def _sum(
        self,
        partial: Buffer,
        lses: Buffer,
        first: Expr,
        top: Expr,
        columns: list[int],
        out: Buffer,
        row: Expr,
    ) -> Expr:
        """Write some columns of a merged row; return the sum of the weights."""
        problem, count = self.problem, self.state_lanes
        f32 = f"float32x{self.lanes}" if self.lanes > 1 else "float32"
        sums = [vector.array(self.lanes, "float32") for _ in columns]
        for column in sums:
            vector.store(column, [0], math.real(0.0, self.lanes))
        weights, total = vector.array(count, "float32"), vector.array(1, "float32")
        vector.store(total, [0], T.float32(0))

        def states(start: Expr, number: int) -> None:
            self._weigh(lses, first, top, start, number, weights)
            with T.serial(number) as i:
                weight = T.bind(weights[i])
                vector.store(total, [0], total[0] + weight)
                at = T.bind((first + (start + i) * problem.heads) * problem.head_dim)
                for place, column in zip(columns, sums, strict=True):
                    self._add(partial, at + place, weight, column, f32)

        whole = problem.states // count
        with T.serial(whole) as step:
            states(T.bind(step * count), count)
        if problem.states % count:
            states(T.int32(whole * count), problem.states % count)
        found = T.bind(total[0])
        scale = T.bind(T.float32(1) / T.Select(found > T.float32(0), found, T.float32(1)))
        for place, column in zip(columns, sums, strict=True):
            value = column.vload([0], f32) * self._each(scale)
            vector.store(out, [row * problem.head_dim + place], self._rounded(T.bind(value)))
        return found

    def _weigh(
        self, lses: Buffer, first: Expr, top: Expr, start: Expr, number: int, weights: Buffer
    ) -> None:
        """Write the weights of ``number`` states from ``start`` on."""
        count = self.state_lanes
        for i in range(count):
            value = self._lse(lses, first, start + i) if i < number else T.float32(math.NOTHING)
            vector.store(weights, [i], value)
        kind = math.kind("float32", count)
        splat = top if count == 1 else T.broadcast(top, count)
        # The clamp keeps -inf out of the exponential, whose result is 0 all the same.
        less = T.max(weights.vload([0], kind) - splat, math.real(math.NOTHING, count))
        vector.store(weights, [0], math.exp2(T.bind(less * math.real(math.LOG2_E, count)), count))

    def _add(self, partial: Buffer, at: Expr, weight: Expr, column: Buffer, f32: str) -> None:
        """Add a weighted vector; what a state of weight 0 holds may be NaN."""
        value = self._widened(T.bind(partial.vload([at], f32.replace("float32", partial.dtype))))
        zero = math.real(0.0, self.lanes)
        kept = T.Select(self._each(weight) > zero, value, zero)
        added = vector.multiply_add(kept, self._each(weight), column.vload([0], f32))
        vector.store(column, [0], added)

    def _each(self, value: Expr) -> Expr:
        return value if self.lanes == 1 else T.broadcast(value, self.lanes)

    def _widened(self, value: Expr) -> Expr:
        """Return loaded elements as fp32."""
        lanes = self.lanes
        if self.problem.dtype != "bfloat16":
            return T.cast(value, math.kind("float32", lanes))
        bits = T.cast(value, math.kind("int32", lanes))
        return math.as_real(T.shift_left(bits, math.integer(16, lanes)), lanes)

    def _rounded(self, value: Expr) -> Expr:
        """Return fp32 as elements: to nearest, ties to even; NaN stays NaN."""
        lanes = self.lanes
        if self.problem.dtype != "bfloat16":
            return T.cast(value, math.kind(self.problem.dtype, lanes))
        found = math.nearest_bf16(value, lanes)
        return T.cast(T.shift_right(found, math.integer(16, lanes)), math.kind("uint16", lanes))
