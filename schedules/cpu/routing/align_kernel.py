"""The kernel of `moe_align_block_size`: a stable counting sort.

    for range of pairs, at once:  count[range, expert] += 1
    for expert, range:            count becomes where the range's first pair goes; blocks named
    for range of pairs, at once:  sorted[count[range, expert]++] = pair

Where pairs are few, no expert is looked at: its block is how many experts before it have pairs, the
bits below its own in a row of bits. This holds while no expert has more pairs than a block.

    for pair:                     count[expert] += 1; seen |= bit of the expert
    for pair, the last first:     block = bits below the expert's
                                  sorted[block * size + --count[expert]] = pair

A thread counts several ranges side by side: increments of one counter wait for each other. Pairs of
no expert here are counted behind the last one, whose place is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.moe_align_block_size import BLOCKS, SLOTS, MoeAlignBlockSize
from wattune.schedules.areas import LINE, round_up
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.routing import bits
from wattune.schedules.cpu.rows import flat
from wattune.schedules.cpu.tasks import ceildiv
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# Pairs for each expert, up to which counting bits for each takes less time than all experts.
_FEW = 2


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
        if not self.problem.block_size:
            # Offsets are wanted of every expert.
            self._many(tensors, pairs)
            return
        sorted_yet = vector.array(1, "int32")
        vector.store(sorted_yet, [0], T.int32(0))
        with bits.functions(), T.If(pairs <= _FEW * self.problem.experts), T.Then():
            self._few(tensors, pairs, sorted_yet)
        with T.If(sorted_yet[0] == 0), T.Then():
            self._many(tensors, pairs)

    def _many(self, tensors: Tensors, pairs: Expr) -> None:
        """Sort by counters of every expert: on one thread where pairs are not too many."""
        if self.threads == 1:
            self._sort(tensors, pairs, 1)
            return
        with T.If(pairs <= self.grain):
            with T.Then():
                self._sort(tensors, pairs, 1)
            with T.Else():
                self._sort(tensors, pairs, self.threads)

    def _few(self, tensors: Tensors, pairs: Expr, done: Buffer) -> None:
        """Sort by the ranks of experts; leave ``done`` 0 where one has more pairs than a block."""
        counters, experts = self._counters(tensors), self.problem.experts
        with T.serial(self.row) as i:
            vector.store(counters, [i], T.int32(0))
        words = experts // bits.WORD + 1
        seen, most = vector.array(words, "int64"), vector.array(1, "int32")
        with T.serial(words) as i:
            vector.store(seen, [i], T.int64(0))
        vector.store(most, [0], T.int32(0))
        ids = flat(tensors["topk_ids"])
        with T.serial(pairs) as pair:
            expert = self._expert(tensors, T.bind(ids[T.cast(pair, "int64")]))
            count = T.bind(counters[expert] + 1)
            vector.store(counters, [expert], count)
            with T.If(expert < experts), T.Then():
                word, at = _place(expert)
                bit = T.shift_left(T.int64(1), at)
                vector.store(seen, [word], T.bitwise_or(seen[word], bit))
                vector.store(most, [0], T.max(most[0], count))
        with T.If(most[0] <= self.problem.block_size), T.Then():
            self._rank(tensors, pairs, counters, seen)
            vector.store(done, [0], T.int32(1))

    def _rank(self, tensors: Tensors, pairs: Expr, counters: Buffer, seen: Buffer) -> None:
        """Put pairs, the last first, into the block of their expert."""
        experts, size = self.problem.experts, self.problem.block_size
        ids, blocks = flat(tensors["topk_ids"]), tensors["expert_ids"]
        sorted_ids = tensors["sorted_token_ids"]
        self._fill(sorted_ids, T.int32(0), 1, tensors.sizes[SLOTS], pairs)
        words = experts // bits.WORD + 1
        before, total = vector.array(words, "int32"), vector.array(1, "int32")
        vector.store(total, [0], T.int32(0))
        with T.serial(words) as i:
            vector.store(before, [i], total[0])
            vector.store(total, [0], total[0] + bits.count_bits(seen[i]))
        with T.serial(pairs) as step:
            pair = T.bind(pairs - 1 - step)
            expert = self._expert(tensors, T.bind(ids[T.cast(pair, "int64")]))
            with T.If(expert < experts), T.Then():
                word, at = _place(expert)
                below = T.bitwise_not(T.shift_left(T.int64(-1), at))
                lower = bits.count_bits(T.bitwise_and(seen[word], below))
                block = T.bind(before[word] + lower)
                slot = T.bind(counters[expert] - 1)
                vector.store(counters, [expert], slot)
                vector.store(sorted_ids, [block * size + slot], pair)
                vector.store(blocks, [block], expert)
        vector.store(tensors["num_tokens_post_padded"], [0], total[0] * size)
        with T.serial(tensors.sizes[BLOCKS] - T.cast(total[0], "int64")) as i:
            vector.store(blocks, [i + T.cast(total[0], "int64")], T.int32(0))

    @staticmethod
    def _put(sorted_ids: Buffer, counters: Buffer, pair: Expr, at: Expr) -> None:
        """Put a pair where its counter says; nowhere where that is below 0."""
        to = T.bind(counters[at])
        with T.If(to >= 0), T.Then():
            vector.store(sorted_ids, [to], pair)
            vector.store(counters, [at], to + 1)

    def _counters(self, tensors: Tensors) -> Buffer:
        return T.decl_buffer((self.workers * self.row,), "int32", data=tensors["workspace"].data)

    def _sort(self, tensors: Tensors, pairs: Expr, threads: int) -> None:
        counters = self._counters(tensors)
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
                self._put(sorted_ids, counters, pair, at)

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
        blocks = Blocks(problem, tensors)
        at = blocks.at
        with T.serial(problem.experts) as expert:
            if not problem.block_size:
                vector.store(tensors["expert_offsets"], [expert], at[0])
            for which in range(ranges):
                count = T.bind(counters[which * self.row + expert])
                vector.store(counters, [which * self.row + expert], at[0])
                vector.store(at, [0], at[0] + count)
            if problem.block_size:
                blocks.close(expert)
        for which in range(ranges):
            vector.store(counters, [which * self.row + problem.experts], T.int32(-1))
        if not problem.block_size:
            vector.store(tensors["expert_offsets"], [problem.experts], at[0])
            return
        blocks.finish()


def _place(expert: Expr) -> tuple[Expr, Expr]:
    """Bind the word of an expert's bit, and its place there."""
    word = T.bind(T.shift_right(expert, T.int32(bits.WORD.bit_length() - 1)))
    return word, T.bind(T.cast(T.bitwise_and(expert, T.int32(bits.WORD - 1)), "int64"))


class Blocks:
    """Emits the blocks of one expert after the other; ``at`` [1] is where the next pair goes."""

    def __init__(self, problem: MoeAlignBlockSize, tensors: Tensors) -> None:
        """Begin at the first slot."""
        self.problem, self.tensors = problem, tensors
        self.at, self.block = vector.array(1, "int32"), vector.array(1, "int64")
        vector.store(self.at, [0], T.int32(0))
        vector.store(self.block, [0], T.int64(0))

    def close(self, expert: Expr) -> None:
        """Name the blocks of an expert's pairs, and go on behind them."""
        at, block, size = self.at, self.block, self.problem.block_size
        end = T.bind(T.cast(ceildiv(at[0], size), "int64"))
        with T.serial(end - block[0]) as i:
            vector.store(self.tensors["expert_ids"], [block[0] + i], expert)
        vector.store(block, [0], end)
        vector.store(at, [0], T.cast(end, "int32") * size)

    def finish(self) -> None:
        """Say where the last block ends, and name the rest."""
        vector.store(self.tensors["num_tokens_post_padded"], [0], self.at[0])
        with T.serial(self.tensors.sizes[BLOCKS] - self.block[0]) as i:
            vector.store(self.tensors["expert_ids"], [self.block[0] + i], T.int32(0))
