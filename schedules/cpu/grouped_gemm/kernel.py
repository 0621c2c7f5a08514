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

from wattune.schedules.cpu.grouped_gemm.plan import Lists, Memory, Plan
from wattune.schedules.cpu.grouped_gemm.product import Product
from wattune.schedules.cpu.grouped_gemm.route import POSITIONS, emit_route
from wattune.schedules.cpu.grouped_gemm.rows import RowMaker
from wattune.schedules.cpu.grouped_gemm.tile import Engine
from wattune.schedules.cpu.tasks import spread
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any
Phase = tuple[str, Callable[[], None]]


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
        first, last = plan.stages[0], plan.products[-1]

        def prepare(worker: Expr, position: Expr) -> None:
            token = T.bind(T.truncdiv(lists.load("pair", position), plan.top_k))
            product = first.product
            at = T.bind(T.cast(token, "int64") * product.columns)
            rows.widen(x, at, product.columns, product.padded_columns, worker)
            rows.encode(product, position, worker)

        def activate(worker: Expr, position: Expr) -> None:
            rows.activate(first, position, last.padded_columns, worker)
            rows.encode(last, position, worker)

        def each(emit: Callable[[Expr, Expr], None]) -> Callable[[], None]:
            return lambda: spread(plan.threads, T.bind(lists.load("counts", POSITIONS)), emit)

        yield "prepare", each(prepare)
        for number, (stage, name) in enumerate(zip(plan.stages, names.weights, strict=True)):
            if number:
                yield "activate", each(activate)
            product = Product(plan, stage, self.engine, tensors[name], memory, lists)
            yield f"gemm{number + 1}", product.emit
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
