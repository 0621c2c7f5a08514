"""Write new rows of keys and values into the cache, before anything attends to them."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu.attention.memory import Region, flat
from wattune.schedules.cpu.attention.plan import Plan, groups_of
from wattune.schedules.cpu.attention.rows import Rows
from wattune.schedules.program import Tensors

Expr = Any


def overwrite(plan: Plan, tensors: Tensors) -> None:
    """Emit the copy of ``k`` and ``v`` to the last positions of each request."""
    problem = plan.problem
    heads, tokens = problem.kv_heads, problem.query_tokens
    loop = T.parallel if plan.threads > 1 else T.serial
    pairs = [
        (flat(tensors["k"]), flat(tensors["k_cache"]), problem.head_dim),
        (flat(tensors["v"]), flat(tensors["v_cache"]), problem.value_dim),
    ]
    count = T.cast(tensors.sizes["batch"], "int32") * heads
    with loop(count) as at, T.serial(tokens) as token:
        request, head = T.bind(at // heads), T.bind(at % heads)
        position = T.bind(tensors["seq_lens"][request] - tokens + token)
        with T.If(position >= 0), T.Then():
            to = T.bind(Rows(problem, tensors, request, head).at(position))
            source = T.bind((T.cast(request, "int64") * tokens + token) * heads + head)
            for new, cache, width in pairs:
                _copy(new, source * width, cache, to * width, width)


def _copy(source: Region, at: Expr, into: Region, to: Expr, width: int) -> None:
    """Emit the copy of a row."""
    lanes = 16
    while lanes > width:
        lanes //= 2
    for start in groups_of(width, lanes):
        into.store(to + start, source.load(at + start, lanes))
