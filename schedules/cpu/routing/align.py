"""Template of `moe_align_block_size`: a stable counting sort.

    for range of pairs, at once:  count[range, expert] += 1
    for expert, range:            count becomes where the range's first pair goes; blocks named
    for range of pairs, at once:  sorted[count[range, expert]++] = pair

A thread counts several ranges side by side: increments of one counter wait for each other. Pairs of
no expert here are counted behind the last one, whose place is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.moe_align_block_size import BLOCKS, SLOTS, MoeAlignBlockSize
from wattune.schedules.areas import LINE, round_up
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.cpu.rows import flat
from wattune.schedules.cpu.tasks import ceildiv
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any
Buffer = Any

# Pairs that take about as long as starting threads.
_GRAIN = 4096


class MoeAlignCount(PlainTemplate):
    """Plain loops, for any target."""

    name = "moe_align_count"
    operator = "moe_align_block_size"

    def applies(self, problem: MoeAlignBlockSize, target: Target) -> bool:
        """Say yes."""
        return True

    def space(self, problem: MoeAlignBlockSize, target: Target) -> Space:
        """Knobs: ranges that a thread counts side by side, pairs for one thread."""
        knobs = (
            Knob("ranges", (1, 2, 4), 2),
            Knob("grain", (1024, 4096, 16384), _GRAIN),
        )
        return Space(self.name, knobs)

    def sizes(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the counters."""
        return {"workspace_bytes": self.kernel(problem, target, values).bytes}

    def kernel(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Kernel:
        """Return what emits the kernel."""
        return Kernel(problem, target.threads, int(values["ranges"]), int(values["grain"]))

    def body(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""
        return self.kernel(problem, target, values).emit

    def counts(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count two passes over the pairs and one over the counters."""
        kernel = self.kernel(problem, target, values)
        pairs = float(problem.tokens * problem.top_k)
        slots = float(problem.extents[SLOTS])
        counters = float(kernel.workers * problem.experts)
        return Counts(
            bytes={"memory": 4 * (pairs + slots), "l1": 24 * pairs + 4 * slots + 8 * counters},
            operations={"alu": 12 * pairs + 4 * counters + slots / vector.LANES},
            tiles={"ranges": float(kernel.ranges)},
            parallelism=max(1.0, pairs // kernel.grain),
            registers=4.0 * kernel.ranges,
            code=12.0 * kernel.ranges,
        )


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel; ``ranges`` for each thread, one thread for up to ``grain`` pairs."""

    problem: MoeAlignBlockSize
    threads: int
    ranges: int
    grain: int

    @property
    def workers(self) -> int:
        """Return the ranges of all threads."""
        return self.threads * self.ranges

    @property
    def row(self) -> int:
        """Return the counters of a range: of each expert, and of none."""
        return round_up(self.problem.experts + 1, LINE // 4)

    @property
    def bytes(self) -> int:
        """Return the bytes of all counters."""
        return 4 * self.workers * self.row

    def emit(self, tensors: Tensors) -> None:
        """Sort all pairs: on one thread where they are few."""
        pairs = T.bind(T.cast(tensors.sizes["tokens"], "int32") * self.problem.top_k)
        if self.threads == 1:
            self._sort(tensors, pairs, 1)
            return
        with T.If(pairs <= self.grain):
            with T.Then():
                self._sort(tensors, pairs, 1)
            with T.Else():
                self._sort(tensors, pairs, self.threads)

    def _sort(self, tensors: Tensors, pairs: Expr, threads: int) -> None:
        counters = T.decl_buffer(
            (self.workers * self.row,), "int32", data=tensors["workspace"].data
        )
        length = T.bind(ceildiv(pairs, threads * self.ranges))
        sorted_ids = tensors["sorted_token_ids"]

        def count(worker: Expr) -> None:
            with T.serial(self.ranges * self.row) as i:
                vector.store(counters, [worker * self.ranges * self.row + i], T.int32(0))

            def add(pair: Expr, at: Expr) -> None:
                vector.store(counters, [at], counters[at] + 1)

            self._each(tensors, worker, length, pairs, add)
            self._fill(sorted_ids, worker, threads, tensors.sizes[SLOTS], pairs)

        def place(worker: Expr) -> None:
            def put(pair: Expr, at: Expr) -> None:
                to = T.bind(counters[at])
                with T.If(to >= 0), T.Then():
                    vector.store(sorted_ids, [to], pair)
                    vector.store(counters, [at], to + 1)

            self._each(tensors, worker, length, pairs, put)

        self._spread(threads, count)
        self._starts(tensors, counters, threads)
        self._spread(threads, place)

    def _spread(self, threads: int, emit: Callable[[Expr], None]) -> None:
        if threads == 1:
            emit(T.int32(0))
            return
        with T.parallel(threads) as worker:
            emit(worker)

    def _each(
        self,
        tensors: Tensors,
        worker: Expr,
        length: Expr,
        pairs: Expr,
        emit: Callable[[Expr, Expr], None],
    ) -> None:
        """Emit ``emit(pair, counter)`` for a thread's pairs, its ranges side by side."""
        ids = flat(tensors["topk_ids"])
        with T.serial(length) as step:
            for part in range(self.ranges):
                which = T.bind(worker * self.ranges + part)
                pair = T.bind(which * length + step)
                with T.If(pair < pairs), T.Then():
                    expert = self._expert(tensors, T.bind(ids[T.cast(pair, "int64")]))
                    emit(pair, T.bind(which * self.row + expert))

    def _expert(self, tensors: Tensors, expert: Expr) -> Expr:
        """Return the expert here that an id means, or the number of experts for none."""
        problem = self.problem
        nowhere = T.int32(problem.experts)
        known = T.And(expert >= 0, expert < problem.num_experts)
        if not problem.local_experts:
            return T.bind(T.Select(known, expert, nowhere))
        local = T.bind(tensors["expert_map"][T.bind(T.Select(known, expert, T.int32(0)))])
        here = T.And(known, T.And(local >= 0, local < problem.local_experts))
        return T.bind(T.Select(here, local, nowhere))

    def _fill(
        self, sorted_ids: Buffer, worker: Expr, threads: int, slots: Expr, pairs: Expr
    ) -> None:
        """Write the sentinel into a thread's part of the sorted pairs."""
        share = T.bind(ceildiv(slots, threads))
        first = T.bind(T.cast(worker, "int64") * share)
        with T.serial(T.max(T.min(slots - first, share), 0)) as i:
            vector.store(sorted_ids, [first + i], pairs)

    def _starts(self, tensors: Tensors, counters: Buffer, threads: int) -> None:
        """Replace counts by where each range's pairs of an expert begin; name the blocks."""
        problem, ranges = self.problem, threads * self.ranges
        at, block = vector.array(1, "int32"), vector.array(1, "int64")
        vector.store(at, [0], T.int32(0))
        vector.store(block, [0], T.int64(0))
        with T.serial(problem.experts) as expert:
            if not problem.block_size:
                vector.store(tensors["expert_offsets"], [expert], at[0])
            for which in range(ranges):
                count = T.bind(counters[which * self.row + expert])
                vector.store(counters, [which * self.row + expert], at[0])
                vector.store(at, [0], at[0] + count)
            if problem.block_size:
                end = T.bind(T.cast(ceildiv(at[0], problem.block_size), "int64"))
                with T.serial(end - block[0]) as i:
                    vector.store(tensors["expert_ids"], [block[0] + i], expert)
                vector.store(block, [0], end)
                vector.store(at, [0], T.cast(end, "int32") * problem.block_size)
        for which in range(ranges):
            vector.store(counters, [which * self.row + problem.experts], T.int32(-1))
        if not problem.block_size:
            vector.store(tensors["expert_offsets"], [problem.experts], at[0])
            return
        vector.store(tensors["num_tokens_post_padded"], [0], at[0])
        with T.serial(tensors.sizes[BLOCKS] - block[0]) as i:
            vector.store(tensors["expert_ids"], [block[0] + i], T.int32(0))
