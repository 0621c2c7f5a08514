"""Write new rows of keys and values into the cache, before anything attends to them."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import item_of, row_of
from wattune.schedules.cuda.attention.plan import CHUNK, Shares
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block

Expr = Any


def overwrite(plan: Shares, block: Block) -> None:
    """Emit the copy of ``k`` and ``v`` to the last positions of a request, a warp a row."""
    problem = plan.problem
    tokens, heads = problem.query_tokens, problem.kv_heads
    number = T.bind(block.x * (block.threads // WARP) + block.thread // WARP)
    item = item_of(plan, block, block.y, number % heads)
    token = T.bind(number // heads)
    position = T.bind(item.length - tokens + token)
    with T.If(T.And(number < tokens * heads, position >= 0)), T.Then():
        to = T.bind(row_of(plan, block, item, position))
        source = T.bind((T.cast(item.request, "int64") * tokens + token) * heads + item.head)
        for name, width in (("k", problem.head_dim), ("v", problem.value_dim)):
            for start in range(0, width // CHUNK, WARP):
                chunk = start + block.thread % WARP
                with T.If(chunk < width // CHUNK), T.Then():
                    _copy(block, name, source * width, to * width, chunk * CHUNK)


def _copy(block: Block, name: str, source: Expr, to: Expr, column: Expr) -> None:
    """Emit the copy of 16 bytes."""
    words = ptx.registers(4, "uint32")
    parts = [words[i] for i in range(4)]
    ptx.load_once(parts, block.view(name, "uint16").ptr_to([source + column]))
    ptx.store_wide(block.view(f"{name}_cache", "uint16").ptr_to([to + column]), parts)
