"""The template of `kv_cache_quantize`: a thread block for each piece of a head.

piece in a whole block of tokens:  params, codes
piece behind them:                 copied to the residual
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_cache_quantize import KVCacheQuantize
from wattune.schedules.cuda.plain import ceildiv, view
from wattune.schedules.cuda.quantized_kv_cache.base import Part, WritesCache
from wattune.schedules.cuda.quantized_kv_cache.counts import packing_counts
from wattune.schedules.cuda.quantized_kv_cache.packer import Packer, Piece
from wattune.schedules.cuda.quantized_kv_cache.plan import PackPlan
from wattune.schedules.cuda.quantized_kv_cache.rows import Rows, copy_rows, row_words
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any


class QuantizePrompts(WritesCache):
    """Whole prompts."""

    name = "kv_quantize_cuda"
    operator = "kv_cache_quantize"
    kernel_name = "quantize"

    def pieces(self, problem: KVCacheQuantize, plan: PackPlan, sizes: Mapping[str, Expr]) -> Expr:
        """Return the pieces of the longest prompt."""
        return ceildiv(sizes["tokens"], plan.tokens)

    def emit(self, problem: KVCacheQuantize, packer: Packer, part: Part) -> None:
        """Emit a piece: packed, copied, or nothing behind the prompt."""
        plan, tensors, cache = packer.plan, packer.tensors, packer.plan.cache
        block = cache.block_tokens
        width = row_words(cache.width(part.which), problem.dtype)
        length = T.bind(tensors["seq_lens"][T.cast(part.request, "int64")])
        packed = T.bind(T.truncdiv(length, block) * block)
        first = T.bind(part.piece * plan.tokens)
        row = T.cast(part.request, "int64") * tensors.sizes["tokens"] * problem.kv_heads
        prompt = Rows(
            problem.dtype,
            view(tensors[part.which], "uint32"),
            T.bind((row + part.head) * width),
            problem.kv_heads * width,
        )
        with T.If(first < packed):
            with T.Then():
                number = T.bind(T.truncdiv(first, block))
                index = T.bind(part.row * tensors.sizes["packed_blocks"] + number)
                rows = replace(prompt, first=T.bind(prompt.word(number * block)))
                packer.emit(part.which, Piece(rows, index, T.bind(first - number * block)))
            with T.Else():
                end = T.bind(T.min(first + plan.tokens, length))
                start = (part.row * block - T.cast(packed, "int64")) * width
                words = view(tensors[f"{part.which}_residual"], "uint32")
                residual = Rows(problem.dtype, words, T.bind(start), width)
                copy_rows(prompt, residual, first, end, width, packer.thread, plan.threads)

    def kernel_counts(
        self, problem: KVCacheQuantize, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count every row twice, once from memory."""
        rows = float(problem.batch * problem.context * problem.kv_heads)
        return packing_counts(problem, self.plan(problem, values), rows, 0.0)
