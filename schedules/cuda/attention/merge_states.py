"""Template of `merge_states`: a thread merges 16 bytes of the outputs of a row's states.

    top = max of lse[states] that are not infinite
    for state: w = exp(lse - top);  total += w;  acc += w * partial_out[state]   # none if empty
    out, lse = acc / total, top + log(total)

Threads of a row read the same log-sum-exps; the loads of all states are on their way at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.merge_states import MergeStates
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.softmax import LN_2, LOG2_E, NOTHING
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Kernel, Place, PlainTemplate, ceildiv, view
from wattune.schedules.cuda.values import WORDS, load, rounded, store, values_of, widened
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any

# Greatest finite fp32: a log-sum-exp beyond it, of either sign, is that of an empty state.
_FINITE = 3.4028234e38


class MergeStatesTemplate(PlainTemplate):
    """Rows that are whole accesses of 16 bytes, of any dtype."""

    name = "merge_states"
    operator = "merge_states"

    def applies(self, problem: MergeStates, target: Target) -> bool:
        """Say whether rows are whole accesses."""
        return problem.head_dim % values_of(problem.dtype) == 0

    def space(self, problem: MergeStates, target: Target) -> Space:
        """Knobs: threads of a block, states whose outputs are loaded at once."""
        at_once = tuple(n for n in (1, 2, 4, 8, 16) if n < 2 * problem.states)
        knobs = (
            Knob("threads", (64, 128, 256, 512), 128),
            Knob("at_once", at_once, min(8, at_once[-1])),
        )
        return Space(self.name, knobs)

    def kernels(
        self, problem: MergeStates, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel."""
        merge = _Merge(problem, int(values["threads"]), int(values["at_once"]))
        return {"merge": Kernel(merge.threads, merge.blocks, merge.emit)}

    def kernel_counts(
        self, problem: MergeStates, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count a load, a conversion and a product a state and access."""
        threads, at_once = int(values["threads"]), int(values["at_once"])
        chunks = problem.tokens * problem.heads * problem.head_dim // values_of(problem.dtype)
        size = itemsize(problem.dtype)
        rows = problem.tokens * problem.heads
        moved = float(rows * (problem.states + 1) * (problem.head_dim * size + 4))
        per_state = 12.0 + 3 * values_of(problem.dtype)
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": chunks * problem.states * per_state / WARP},
            tiles={"threads": float(threads), "at_once": float(at_once)},
            parallelism=float(-(-chunks // threads)),
            registers=4.0 * at_once + 2 * values_of(problem.dtype) + 16,
            code=per_state * at_once,
        )


@dataclass(frozen=True)
class _Merge:
    """Emits the kernel."""

    problem: MergeStates
    threads: int
    at_once: int

    @property
    def chunks(self) -> int:
        """Accesses of a row."""
        return self.problem.head_dim // values_of(self.problem.dtype)

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the blocks that all chunks fill."""
        return ceildiv(sizes["tokens"] * (self.problem.heads * self.chunks), self.threads)

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Merge a thread's chunk."""
        heads, states = self.problem.heads, self.problem.states
        index = T.bind(T.cast(place.block, "int64") * self.threads + place.thread)
        row, chunk = T.bind(T.truncdiv(index, self.chunks)), T.bind(T.truncmod(index, self.chunks))
        with T.If(row < tensors.sizes["tokens"] * heads), T.Then():
            token = T.bind(T.truncdiv(row, heads))
            first = T.bind(token * (states * heads) + row - token * heads)
            top = self._top(tensors, first)
            total, sums = self._sum(tensors, first, chunk, top)
            self._store(tensors, row, chunk, top, total, sums)

    def _lse(self, tensors: Tensors, first: Expr, state: Expr) -> tuple[Expr, Expr]:
        """Return a state's log-sum-exp, and whether it counts."""
        lse = T.bind(tensors["partial_lse"][first + state * self.problem.heads])
        finite = T.And(lse >= T.float32(-_FINITE), lse <= T.float32(_FINITE))
        return lse, finite

    def _top(self, tensors: Tensors, first: Expr) -> Expr:
        """Return the greatest log-sum-exp."""
        top = ptx.registers(1, "float32")
        ptx.put(top, 0, T.float32(NOTHING))
        with T.serial(self.problem.states) as state:
            lse, finite = self._lse(tensors, first, state)
            ptx.put(top, 0, T.Select(finite, T.max(top[0], lse), top[0]))
        return top[0]

    def _sum(self, tensors: Tensors, first: Expr, chunk: Expr, top: Expr) -> tuple[Any, Any]:
        """Return the sum of weights, and that of the weighed chunks."""
        total = ptx.registers(1, "float32")
        sums = ptx.registers(values_of(self.problem.dtype), "float32")
        ptx.put(total, 0, T.float32(0))
        for i in range(values_of(self.problem.dtype)):
            ptx.put(sums, i, T.float32(0))
        whole, rest = divmod(self.problem.states, self.at_once)
        with T.serial(whole) as group:
            start = T.bind(group * self.at_once)
            self._group(tensors, first, chunk, top, (start, self.at_once), (total, sums))
        if rest:
            start = T.int32(whole * self.at_once)
            self._group(tensors, first, chunk, top, (start, rest), (total, sums))
        return total, sums

    def _group(
        self,
        tensors: Tensors,
        first: Expr,
        chunk: Expr,
        top: Expr,
        states: tuple[Expr, int],
        into: tuple[Any, Any],
    ) -> None:
        """Add some states, from one on: all loads, then all sums."""
        problem, (start, count), (total, sums) = self.problem, states, into
        kept = ptx.registers(WORDS * count, "uint32")
        source = view(tensors["partial_out"], "uint32")
        for i in range(count):
            at = (first + (start + i) * problem.heads) * self.chunks + chunk
            load(kept, WORDS * i, WORDS, source, at * WORDS)
        for i in range(count):
            lse, finite = self._lse(tensors, first, start + i)
            with T.If(finite), T.Then():
                weight = T.bind(ptx.exp2((lse - top) * T.float32(LOG2_E)))
                ptx.put(total, 0, total[0] + weight)
                words = [kept[WORDS * i + word] for word in range(WORDS)]
                found = [value for word in words for value in widened(word, problem.dtype)]
                for j, value in enumerate(found):
                    ptx.put(sums, j, sums[j] + weight * value)

    def _store(
        self, tensors: Tensors, row: Expr, chunk: Expr, top: Expr, total: Any, sums: Any
    ) -> None:
        """Store the chunk; the first one's thread stores the log-sum-exp."""
        dtype = self.problem.dtype
        factor = T.bind(T.float32(1) / T.max(total[0], T.float32(1e-30)))
        words, per = ptx.registers(WORDS, "uint32"), values_of(dtype) // WORDS
        for word in range(WORDS):
            values = [sums[word * per + i] * factor for i in range(per)]
            if per == 1:
                ptx.put(words, word, rounded(values[0], dtype))
            else:
                ptx.pack(words[word], values[0], values[1], dtype)
        at = (row * self.chunks + chunk) * WORDS
        store(view(tensors["out"], "uint32"), at, words, 0, WORDS)
        with T.If(chunk == 0), T.Then():
            lse = top + ptx.log2(T.max(total[0], T.float32(1e-30))) * T.float32(LN_2)
            empty = total[0] <= T.float32(0)
            ptx.put(tensors["lse"], row, T.Select(empty, T.float32(float("-inf")), lse))
