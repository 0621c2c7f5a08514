"""The template of `quantized_kv_cache_append`: a thread block for each piece of a residual.

new rows up to the end of their block -> residual
residual full:  params, codes;  new rows of the next block -> residual
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvm.script import tirx as T

from wattune.ops.quantized_kv_cache_append import QuantizedKVCacheAppend
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import view
from wattune.schedules.cuda.quantized_kv_cache.base import Part, WritesCache
from wattune.schedules.cuda.quantized_kv_cache.counts import packing_counts
from wattune.schedules.cuda.quantized_kv_cache.packer import Packer, Piece
from wattune.schedules.cuda.quantized_kv_cache.plan import PackPlan
from wattune.schedules.cuda.quantized_kv_cache.rows import Rows, copy_rows, row_words
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any


class QuantizedAppend(WritesCache):
    """Tokens as they come."""

    name = "kv_append_cuda"
    operator = "quantized_kv_cache_append"
    kernel_name = "append"

    def pieces(
        self, problem: QuantizedKVCacheAppend, plan: PackPlan, sizes: Mapping[str, Expr]
    ) -> Expr:
        """Return the pieces of a residual."""
        return plan.pieces

    def emit(self, problem: QuantizedKVCacheAppend, packer: Packer, part: Part) -> None:
        """Emit a piece: rows of the residual that no other thread block touches."""
        plan, tensors, cache = packer.plan, packer.tensors, packer.plan.cache
        size = cache.block_tokens
        length = T.bind(tensors["seq_lens"][T.cast(part.request, "int64")])
        # Row 0 of the inputs is token ``before``, which may lie before the request.
        before = T.bind(length - problem.query_tokens)
        first = T.bind(T.max(before, 0))
        number = T.bind(T.truncdiv(first, size))
        boundary = T.bind((number + 1) * size)
        offset = T.bind(part.piece * plan.tokens)
        new, residual = self._rows(problem, packer, part, before)

        def copy(start: Expr) -> None:
            """Copy the new tokens that the piece holds of the block that begins at ``start``."""
            begin = T.bind(T.max(first, start + offset))
            end = T.bind(T.min(length, start + offset + plan.tokens))
            target = replace(residual, first=T.bind(residual.word(-start)))
            copy_rows(new, target, begin, end, residual.stride, packer.thread, plan.threads)

        copy(T.bind(number * size))
        with T.If(T.And(length >= boundary, first < length)), T.Then():
            ptx.block_barrier()
            index = T.bind(part.row * tensors.sizes["packed_blocks"] + number)
            packer.emit(part.which, Piece(residual, index, offset))
            copy(boundary)

    def _rows(
        self, problem: QuantizedKVCacheAppend, packer: Packer, part: Part, before: Expr
    ) -> tuple[Rows, Rows]:
        """Return the inputs by their tokens, and the residual by its rows."""
        tensors, cache = packer.tensors, packer.plan.cache
        width = row_words(cache.width(part.which), problem.dtype)
        stride = problem.kv_heads * width
        inputs = T.cast(part.request, "int64") * problem.query_tokens - T.cast(before, "int64")
        words = view(tensors[part.which], "uint32")
        new = Rows(problem.dtype, words, T.bind(inputs * stride + part.head * width), stride)
        start = T.bind(part.row * (cache.block_tokens * width))
        words = view(tensors[f"{part.which}_residual"], "uint32")
        return new, Rows(problem.dtype, words, start, width)

    def kernel_counts(
        self, problem: QuantizedKVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the new rows, and a block's packing where the context is whole blocks."""
        heads = float(problem.batch * problem.kv_heads)
        full = problem.context % problem.block_tokens == 0
        rows = heads * problem.block_tokens * full
        return packing_counts(
            problem, self.plan(problem, values), rows, heads * problem.query_tokens
        )
