"""The kernel of `select_union`: a ranking for each head, then a union for each list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.select_union import TOKENS, SelectUnion
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import INFINITY
from wattune.schedules.cpu.rows import flat
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.select_best import Best, Plan
from wattune.schedules.cpu.selection.select_rows import Row
from wattune.schedules.cpu.selection.select_sort import RADIX, Pairs, Sorter, descending
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

_LINE = 16
# 2^32 divided by the golden ratio: products' upper bits spread neighbouring numbers.
_GOLDEN = 0x9E3779B1 - (1 << 32)


@dataclass(frozen=True)
class Scratch:
    """The workspace in int32 elements: lists of `Best`, a thread's own areas, all rankings."""

    plan: Plan
    threads: int
    middle: int
    rankings: int

    @classmethod
    def of(cls, problem: SelectUnion, threads: int, plan: Plan) -> Scratch:
        """Return the workspace of a problem."""
        return cls(plan, threads, problem.middle, problem.batch * problem.query_heads)

    @property
    def row(self) -> int:
        """Return the elements of a ranking, in whole cache lines."""
        return -(-max(1, self.middle) // _LINE) * _LINE

    @property
    def slots(self) -> int:
        """Return the elements of a table of chosen tokens: half of them stay empty."""
        return 1 << max(4, (2 * self.middle - 1).bit_length())

    @property
    def own(self) -> int:
        """Return a thread's elements: counters, keys, a spare of pairs, a table."""
        return RADIX + 3 * self.plan.room + self.slots

    @property
    def lists(self) -> int:
        """Return the elements of all lists."""
        return self.threads * 2 * self.plan.room

    @property
    def bytes(self) -> int:
        """Return all bytes."""
        return 4 * (self.lists + self.threads * self.own + self.rankings * self.row)


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: SelectUnion
    scratch: Scratch

    def emit(self, tensors: Tensors) -> None:
        """Rank the tokens of every head, then unite them."""
        problem, scratch = self.problem, self.scratch
        batch = tensors.sizes["batch"]
        logits = flat(tensors["logits"])
        words = T.decl_buffer((scratch.bytes // 4,), "int32", data=tensors["workspace"].data)

        def rank(worker: Expr, row: Expr) -> None:
            length = length_of(tensors, T.truncdiv(row, problem.query_heads))
            with T.If(length > problem.token_budget), T.Then():
                start = T.bind(T.cast(row, "int64") * tensors.sizes[TOKENS])
                best = Best(scratch.plan, tensors["workspace"], scratch.threads, worker)
                end = T.bind(length - problem.recent)
                middle = Row(logits, start, T.int32(problem.sinks), end)
                alone = T.int32(0)
                best.begin(alone, middle, T.int32(problem.middle), T.float32(-INFINITY))
                best.fill(logits, T.int32(1))
                self._rank(best, words, worker, row)

        def unite(worker: Expr, item: Expr) -> None:
            length = length_of(tensors, T.truncdiv(item, problem.unions))
            with T.If(length > problem.token_budget):
                with T.Then():
                    self._unite(words, worker, item)
                    self._write(tensors, words, worker, item, length)
                with T.Else():
                    self._write_all(tensors, item, length)

        if problem.middle:
            with scratch.plan.lanes.functions():
                spread(scratch.threads, batch * problem.query_heads, rank)
        spread(scratch.threads, batch * problem.unions, unite)

    def _own(self, worker: Expr) -> Expr:
        """Return where a thread's areas begin."""
        return T.bind(T.cast(worker, "int64") * self.scratch.own + self.scratch.lists)

    def _pairs(self, worker: Expr) -> tuple[Pairs, Pairs]:
        """Return keys beside a list's indices, and a spare.

        Keys do not take the place of a list's scores: LLVM would not expect integers there.
        """
        room = self.scratch.plan.room
        keys = T.bind(self._own(worker) + RADIX)
        indices = T.bind(T.cast(worker, "int64") * (2 * room) + room)
        return Pairs(keys, indices), Pairs(T.bind(keys + room), T.bind(keys + 2 * room))

    def _rank(self, best: Best, words: Buffer, worker: Expr, row: Expr) -> None:
        """Sort a head's list by descending logits, stably, and store its tokens."""
        scratch, lanes = self.scratch, best.lanes
        pairs, spare = self._pairs(worker)
        with T.serial(ceildiv(scratch.middle, lanes.count)) as step:
            at = T.bind(step * lanes.count)
            descending(lanes, best.values, best.base(T.int32(0)) + at, words, pairs.keys + at)
        Sorter(words, self._own(worker)).sort(pairs, spare, T.int32(scratch.middle))
        to = self._ranking(row)
        with T.serial(scratch.middle) as i:
            vector.store(words, [to + i], words[pairs.payloads + i])

    def _ranking(self, row: Expr) -> Expr:
        """Return where a head's ranking lies."""
        first = self.scratch.lists + self.scratch.threads * self.scratch.own
        return T.bind(T.cast(row, "int64") * self.scratch.row + first)

    def _unite(self, words: Buffer, worker: Expr, item: Expr) -> None:
        """List tokens rank by rank, each once; then sort them."""
        problem, scratch = self.problem, self.scratch
        # The keys are tokens; what comes with them means nothing.
        pairs, spare = self._pairs(worker)
        table = T.bind(pairs.keys + 3 * scratch.plan.room)
        first = self._ranking(item * problem.group)
        with T.serial(scratch.slots) as i:
            vector.store(words, [table + i], T.int32(-1))
        taken, rank = (vector.array(1, "int32") for _ in range(2))
        for counter in (taken, rank):
            vector.store(counter, [0], T.int32(0))
        with T.While(taken[0] < scratch.middle):
            with (
                T.serial(problem.group) as head,
                T.If(taken[0] < scratch.middle),
                T.Then(),
            ):
                token = T.bind(words[first + head * scratch.row + rank[0]])
                self._take(words, table, token, pairs.keys, taken)
            vector.store(rank, [0], rank[0] + 1)
        Sorter(words, self._own(worker)).sort(pairs, spare, T.int32(scratch.middle))

    def _take(self, words: Buffer, table: Expr, token: Expr, tokens: Expr, taken: Buffer) -> None:
        """Append a token unless the table has it."""
        slots = self.scratch.slots
        bits = slots.bit_length() - 1
        slot = vector.array(1, "int32")
        spread_out = T.reinterpret("uint32", token * T.int32(_GOLDEN))
        vector.store(slot, [0], T.cast(T.shift_right(spread_out, T.uint32(32 - bits)), "int32"))

        def held() -> Expr:
            return words[table + slot[0]]

        with T.While(T.And(held() >= 0, held() != token)):
            vector.store(slot, [0], T.bitwise_and(slot[0] + 1, T.int32(slots - 1)))
        with T.If(held() < 0), T.Then():
            vector.store(words, [table + slot[0]], token)
            vector.store(words, [tokens + taken[0]], token)
            vector.store(taken, [0], taken[0] + 1)

    def _write(
        self, tensors: Tensors, words: Buffer, worker: Expr, item: Expr, length: Expr
    ) -> None:
        """Write first, chosen and last tokens."""
        problem = self.problem
        indices, counts = (flat(tensors[name]) for name in ("token_indices", "token_counts"))
        start = T.bind(T.cast(item, "int64") * problem.token_budget)
        tokens = self._pairs(worker)[0].keys
        with T.serial(problem.sinks) as i:
            vector.store(indices, [start + i], i)
        with T.serial(problem.middle) as i:
            vector.store(indices, [start + problem.sinks + i], words[tokens + i])
        with T.serial(problem.recent) as i:
            at = start + (problem.sinks + problem.middle) + i
            vector.store(indices, [at], length - problem.recent + i)
        vector.store(counts, [T.cast(item, "int64")], T.int32(problem.token_budget))

    def _write_all(self, tensors: Tensors, item: Expr, length: Expr) -> None:
        """Write all tokens of a request within the budget."""
        indices, counts = (flat(tensors[name]) for name in ("token_indices", "token_counts"))
        start = T.bind(T.cast(item, "int64") * self.problem.token_budget)
        with T.serial(self.problem.token_budget) as i:
            vector.store(indices, [start + i], T.Select(i < length, i, T.int32(-1)))
        vector.store(counts, [T.cast(item, "int64")], length)
