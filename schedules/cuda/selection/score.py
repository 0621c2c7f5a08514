"""Template of `block_score`: bounds are streamed once, the mean query stays in registers.

    m = mean of the queries * scale                         # fp32, in shared memory
    mask = all ones where m < 0
    for slot:
        bound = (k_min ^ k_max) & mask ^ k_max              # max(m k_min, m k_max) = m bound
        score = sum m * bound

With k_min <= k_max the sign of m decides which product is the greater.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.block_score import BlockScore
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import Buffer, Expr, Kernel, Place, view
from wattune.schedules.cuda.selection.base import RowTemplate
from wattune.schedules.cuda.selection.stream import Stream, stream_knobs, stream_rules
from wattune.schedules.cuda.values import WORD, WORDS, widened
from wattune.schedules.program import Tensors
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_SOURCES = ("k_min", "k_max")


class BlockScoreGpu(RowTemplate):
    """Teams of lanes, a slot each."""

    name = "block_score_gpu"
    operator = "block_score"

    def space(self, problem: BlockScore, target: Target) -> Space:
        """Knobs: threads, lanes of a team, slots at once, how many times, blocks an SM has."""
        width, sources = problem.head_dim, len(_SOURCES)
        knobs = stream_knobs(problem, width, sources, target)
        return Space(self.name, knobs, stream_rules(problem, width, sources))

    def kernels(
        self, problem: BlockScore, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel."""
        score = _Score(problem, Stream.of(problem, problem.head_dim, len(_SOURCES), values))
        stream = score.stream
        blocks = stream.blocks(problem.kv_heads)
        mean = WORD * problem.head_dim
        return {"score": Kernel(stream.threads, blocks, score.emit, stream.resident, shared=mean)}

    def kernel_counts(
        self, problem: BlockScore, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the stream, and the mean query of every thread block."""
        stream = Stream.of(problem, problem.head_dim, len(_SOURCES), values)
        slots = block_count(problem.context, problem.block_size)
        stretches = problem.batch * problem.kv_heads * block_count(slots, stream.span)
        queries = stretches * problem.query_tokens * problem.group * problem.head_dim
        return stream.counts(problem, queries)


@dataclass(frozen=True)
class _Score:
    """Emits the kernel."""

    problem: BlockScore
    stream: Stream

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Score a stretch of slots."""
        stream = self.stream
        stretch = stream.stretch(self.problem, tensors, place)
        mean = T.alloc_shared((self.problem.head_dim,), "float32")
        with T.If(stretch.first < stretch.used), T.Then():
            self._mean(tensors, mean, stretch.request, stretch.head, place.thread)
        ptx.block_barrier()
        query = stream.query(mean, place)
        masks = ptx.registers(stream.pieces * WORDS, "uint32")
        each = WORD // itemsize(self.problem.dtype)
        for word in range(stream.pieces * WORDS):
            signs = [query[word * each + i] < T.float32(0) for i in range(each)]
            ptx.put(masks, word, _mask(signs))
        sources = [view(tensors[name], "uint32") for name in _SOURCES]

        def fold(total: Expr, word: int, bits: Sequence[Expr]) -> Expr:
            low, high = bits
            differ = T.bitwise_and(T.bitwise_xor(low, high), masks[word])
            bound = T.bind(T.bitwise_xor(differ, high))
            for i, value in enumerate(widened(bound, self.problem.dtype)):
                total = value * query[word * each + i] + total
            return total

        stream.emit(sources, tensors["scores"], stretch, place, fold)

    def _mean(
        self, tensors: Tensors, mean: Buffer, request: Expr, head: Expr, thread: Expr
    ) -> None:
        """Store the mean of a group's queries, times the scale."""
        problem = self.problem
        factor = problem.scale / (problem.query_tokens * problem.group)
        total = ptx.registers(1, "float32")
        with T.serial(block_count(problem.head_dim, self.stream.threads)) as turn:
            column = T.bind(turn * self.stream.threads + thread)
            with T.If(column < problem.head_dim), T.Then():
                ptx.put(total, 0, T.float32(0))
                with T.serial(problem.query_tokens) as token, T.serial(problem.group) as i:
                    line = T.cast(request, "int64") * problem.query_tokens + token
                    query = line * problem.query_heads + (head * problem.group + i)
                    value = tensors["q"][query * problem.head_dim + column]
                    ptx.put(total, 0, total[0] + T.cast(value, "float32"))
                ptx.put(mean, column, total[0] * T.float32(factor))


def _mask(signs: Sequence[Expr]) -> Expr:
    """Return a word that is all ones in the places of values whose sign is true."""
    if len(signs) == 1:
        return T.Select(signs[0], T.uint32(0xFFFFFFFF), T.uint32(0))
    low = T.Select(signs[0], T.uint32(0xFFFF), T.uint32(0))
    return T.bitwise_or(low, T.Select(signs[1], T.uint32(0xFFFF0000), T.uint32(0)))
