"""Emit a kernel: order the pairs by expert, then products and what lies between them.

    jobs, positions = route(topk_ids)
    for position in parallel(positions):  x[position] = rounded(hidden_states[token])
    for thread in parallel(threads):      for (job, part) of the thread's: sums = x @ w1[expert]^T
    for position in parallel(positions):  h[position] = rounded(silu(gate) * up)
    for thread in parallel(threads):      ...                              sums = h @ w2[expert]^T
    for token in parallel(tokens):        out = sum over slots, in their order, of share * sums

A thread takes every ``threads``-th of all (job, part): with as many parts as threads it has the
same share of each expert, however the routing is skewed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.grouped_gemm.layout import ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import JOB, Lists, Memory, Plan
from wattune.schedules.cpu.grouped_gemm.route import JOBS, POSITIONS, emit_route
from wattune.schedules.cpu.grouped_gemm.rows import RowMaker
from wattune.schedules.cpu.grouped_gemm.tile import LANES, Ahead, Engine, Tile
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any
Phase = tuple[str, Callable[[], None]]

# A tile fetches at least 1 / 2^MOST_SHIFT of the next block.
MOST_SHIFT = 4


@dataclass(frozen=True)
class Names:
    """The arguments of an operator: the activations, the weights, the shares, the output."""

    x: str
    weights: tuple[str, ...]
    shares: str
    out: str


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel; ``dtype`` is that of activations and output.

    ``only`` leaves all phases out but one, for measuring what it costs: the workspace must be that
    of a whole call.
    """

    plan: Plan
    engine: Engine
    names: Names
    dtype: str
    only: str = ""

    def emit(self, tensors: Tensors) -> None:
        """Emit all phases."""
        for name, phase in self._phases(tensors):
            if self.only in ("", name):
                phase()

    def _phases(self, tensors: Tensors) -> Iterator[Phase]:
        plan, names = self.plan, self.names
        memory = Memory.of(plan, tensors)
        lists = Lists(memory, plan)
        rows = RowMaker(plan, memory, lists, self.dtype)
        tokens = T.bind(T.cast(tensors.sizes["tokens"], "int32"))
        yield "route", lambda: self._route(tensors, lists, tokens)
        x = rows.flat(tensors[names.x])
        first, last = plan.products[0], plan.products[-1]

        def prepare(worker: Expr, position: Expr) -> None:
            token = T.bind(T.truncdiv(lists.load("pair", position), plan.top_k))
            at = T.bind(T.cast(token, "int64") * first.columns)
            rows.widen(x, at, first.columns, first.padded_columns, worker)
            rows.encode(first, position, worker)

        def activate(worker: Expr, position: Expr) -> None:
            rows.activate(first, position, last.padded_columns, worker)
            rows.encode(last, position, worker)

        def each(emit: Callable[[Expr, Expr], None]) -> Callable[[], None]:
            return lambda: spread(plan.threads, T.bind(lists.load("counts", POSITIONS)), emit)

        yield "prepare", each(prepare)
        for number, (product, name) in enumerate(zip(plan.products, names.weights, strict=True)):
            if number:
                yield "activate", each(activate)
            yield (
                f"gemm{number + 1}",
                lambda product=product, name=name: self._multiply(  # type: ignore[misc]
                    product, tensors[name], memory, lists, rows
                ),
            )
        yield "combine", lambda: self._combine(tensors, rows, tokens)

    def _route(self, tensors: Tensors, lists: Lists, tokens: Expr) -> None:
        ids = tensors["topk_ids"]
        row = T.decl_buffer(
            (T.cast(tensors.sizes["tokens"], "int64") * self.plan.top_k,),
            "int32",
            data=ids.data,
            align=4,
        )
        emit_route(self.plan, lists, row, T.bind(tokens * self.plan.top_k))

    def _combine(self, tensors: Tensors, rows: RowMaker, tokens: Expr) -> None:
        """Emit the output rows: one a token with shares, else one a pair."""
        plan, names = self.plan, self.names
        out = rows.flat(tensors[names.out])
        shares = None
        if names.shares:
            shares = T.decl_buffer(
                (T.cast(tensors.sizes["tokens"], "int64") * plan.top_k,),
                "float32",
                data=tensors[names.shares].data,
                align=4,
            )
        slots = 1 if names.shares else plan.top_k

        def one(worker: Expr, row: Expr) -> None:
            del worker
            token = T.bind(T.truncdiv(row, slots))
            rows.combine(plan.products[-1], out, token, shares, T.bind(row - token * slots))

        spread(plan.threads, tokens * slots, one)

    def _multiply(
        self,
        product: ExpertLayout,
        weights: Buffer,
        memory: Memory,
        lists: Lists,
        rows: RowMaker,
    ) -> None:
        """Emit one product: the tasks of each thread."""
        plan = self.plan
        parts = min(plan.parts, product.blocks)

        def task(worker: Expr, number: Expr) -> None:
            job = T.bind(T.truncdiv(number, parts))
            part = T.bind(number - job * parts)
            expert, first, count = (T.bind(lists.load("jobs", job * JOB + i)) for i in range(JOB))
            start = T.bind(part * product.blocks // parts)
            stop = T.bind((part + 1) * product.blocks // parts)
            base = T.bind(T.cast(expert, "int64") * product.expert_bytes)
            with T.serial(stop - start) as i, T.serial(ceildiv(count, plan.row_block)) as chunk:
                block = T.bind(start + i)
                at = T.bind(base + T.cast(block, "int64") * product.block_bytes)
                done = T.bind(chunk * plan.row_block)
                left = T.bind(count - done)
                ahead = self._ahead(product, chunk, count)
                self._rows(
                    product, weights, memory, rows, at, block, first + done, left, worker, ahead
                )

        spread(
            plan.threads,
            lists.load("counts", JOBS) * parts,
            task,
            lambda worker: self.engine.begin(plan, memory, worker),
            self.engine.end,
        )

    def _ahead(self, product: ExpertLayout, chunk: Expr, rows: Expr) -> Ahead:
        """Bind what full tiles of rows fetch: each of a block's a part of the next block.

        Only the first tile of a block finds it in memory, too early for the arithmetic of the
        others to hide that. Where there is but one it fetches the stream.
        """
        plan = self.plan
        if not plan.next_block:
            return Ahead(plan.prefetch)
        full = T.truncdiv(rows, plan.row_block)
        shift = sum(
            (T.cast(full >= 1 << power, "int64") for power in range(1, MOST_SHIFT + 1)), T.int64(0)
        )
        shift = T.bind(shift)
        share = T.shift_right(T.int64(product.block_bytes), shift)
        later = product.block_bytes + T.cast(chunk, "int64") * share
        return Ahead(T.bind(T.Select(shift > 0, later, T.int64(plan.prefetch))), shift)

    def _rows(
        self,
        product: ExpertLayout,
        weights: Buffer,
        memory: Memory,
        rows: RowMaker,
        at: Expr,
        block: Expr,
        first: Expr,
        left: Expr,
        worker: Expr,
        ahead: Ahead,
    ) -> None:
        """Emit the tile of the least size that holds the rows that are left."""
        start = T.bind(first)

        def tile(count: int) -> None:
            full = count == self.plan.row_block
            early = ahead if full else Ahead(self.plan.prefetch)
            where = Tile(self.plan, product, memory, weights, at, start, count, worker, early)
            value = self.engine.emit(where)
            for r in range(count):
                with T.If(left > r), T.Then():
                    to = T.bind(rows.sums_at(product, start + r) + block * product.block_rows)
                    for g in range(product.groups):
                        vector.store(memory.sums, [to + g * LANES], value(r, g))

        def choose(sizes: tuple[int, ...]) -> None:
            if len(sizes) == 1:
                tile(sizes[0])
                return
            with T.If(left <= sizes[0]):
                with T.Then():
                    tile(sizes[0])
                with T.Else():
                    choose(sizes[1:])

        choose(self.engine.row_sizes(self.plan.row_block))
