"""Template of `block_minmax`: keys are compared as integers, which order like their bits.

    for request, head, changed block:
        low, high = first key of the block                    # ordered(x) = x ^ (x >> 15 & 0x7fff)
        for token in block:
            low, high = min(low, ordered(key)), max(high, ordered(key))
        k_min, k_max = ordered(low), ordered(high)            # its own inverse

So bfloat16 and float16 fill all 16-bit lanes and are never converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.block_minmax import BlockMinmax
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS, block_count
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import lanes_knob
from wattune.schedules.cpu.rows import flat
from wattune.schedules.cpu.selection.base import ROW, VectorTemplate, length_of
from wattune.schedules.cpu.selection.cache import CacheRows
from wattune.schedules.cpu.selection.ranges import range_knob
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class BlockMinmaxVector(VectorTemplate):
    """Keys side by side in integer lanes."""

    name = "block_minmax_vector"
    operator = "block_minmax"

    def applies(self, problem: BlockMinmax, target: Target) -> bool:
        """Say whether rows are whole vectors; nothing is converted."""
        return problem.head_dim % ROW == 0

    def space(self, problem: BlockMinmax, target: Target) -> Space:
        """Knobs: lanes, blocks a task, vectors of a row at once, blocks that keys are asked for."""
        rows = problem.batch * problem.kv_heads // heads_beside(problem)
        blocks = changed_blocks(problem) or block_count(problem.context, problem.block_size)
        knobs = (
            lanes_knob(target),
            range_knob(rows, blocks, target.threads),
            Knob("columns", (2, 4, 8), 4),
            Knob("ahead", (0, 1, 2, 4), 1),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: BlockMinmax, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        bits = 8 * itemsize(problem.dtype)
        lanes = int(values["lanes"]) * 32 // bits
        while problem.head_dim % lanes:
            lanes //= 2
        grain, columns, ahead = (int(values[name]) for name in ("grain", "columns", "ahead"))
        return Kernel(problem, target.threads, bits, lanes, grain, columns, ahead).emit

    def counts(self, problem: BlockMinmax, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count a load, two operations of order and two comparisons a vector."""
        work = problem.changed(problem.context)
        keys = problem.context - work.start * problem.block_size
        size = itemsize(problem.dtype)
        rows = float(problem.batch * problem.kv_heads * problem.head_dim * size)
        moved = rows * (keys + 2 * len(work))
        vectors = rows / (4 * int(values["lanes"]))
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": vectors * (4 * keys + 6 * len(work))},
            tiles={"blocks": float(len(work)), "columns": float(int(values["columns"]))},
            parallelism=problem.batch * problem.kv_heads * -(-len(work) // int(values["grain"])),
            registers=2.0 * int(values["columns"]) + 4,
            code=5.0 * int(values["columns"]),
        )


def changed_blocks(problem: BlockMinmax) -> int:
    """Return the most blocks that the new tokens of a request touch; 0: as many as it has."""
    if not problem.query_tokens:
        return 0
    return (problem.query_tokens + problem.block_size - 2) // problem.block_size + 1


def heads_beside(problem: BlockMinmax) -> int:
    """Return how many heads' keys of a block lie near each other: all but in one long row."""
    return problem.kv_heads if problem.layout == "NHD" or problem.page_size else 1


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel; ``lanes`` of ``bits`` bits, ``columns`` vectors at once.

    Keys are asked for ``ahead`` blocks before they are read: a block is often a page of memory, at
    whose end prefetchers stop.
    """

    problem: BlockMinmax
    threads: int
    bits: int
    lanes: int
    grain: int
    columns: int
    ahead: int

    def emit(self, tensors: Tensors) -> None:
        """Bound every changed block; heads that lie beside each other are done together."""
        problem = self.problem
        beside = heads_beside(problem)
        apart = problem.kv_heads // beside
        slots = T.cast(tensors.sizes[SLOTS], "int32")
        ranges = T.bind(ceildiv(changed_blocks(problem) or slots, self.grain))
        rows = CacheRows(problem, tensors, problem.head_dim)
        keys, *bounds = (flat(tensors[n], self._dtype) for n in ("k_cache", "k_min", "k_max"))

        def task(worker: Any, index: Any) -> None:
            row = T.bind(T.truncdiv(index, ranges))
            request = T.bind(T.truncdiv(row, apart))
            length = length_of(tensors, request)
            since = T.max(length - problem.query_tokens, 0) if problem.query_tokens else T.int32(0)
            first = T.truncdiv(since, problem.block_size) + (index - row * ranges) * self.grain
            first = T.bind(first)
            used = T.min(ceildiv(length, problem.block_size), slots)
            count = T.bind(T.min(used - first, self.grain))
            with T.serial(T.max(count, 0)) as at, T.serial(beside) as near:
                head = (row - request * apart) * beside + near
                block = T.bind(first + at)
                slot = T.cast(request * problem.kv_heads + head, "int64") * slots + block
                start = block * problem.block_size
                tokens = T.bind(T.min(length - start, problem.block_size))
                find = rows.within_block(request, head, start)
                if self.ahead:
                    last = (first + count - 1) * problem.block_size
                    later = T.bind(T.min(start + self.ahead * problem.block_size, last))
                    self._ask(keys, rows.within_block(request, head, later), length - later)
                self._block(keys, bounds, find, tokens, T.bind(slot * problem.head_dim))

        spread(self.threads, tensors.sizes["batch"] * apart * ranges, task)

    @property
    def _dtype(self) -> str:
        return f"int{self.bits}"

    def _ask(self, keys: Any, find: Any, tokens: Any) -> None:
        """Prefetch the keys of a block."""
        with T.serial(T.min(tokens, self.problem.block_size)) as token:
            start = T.bind(find(token))
            for place in range(0, self.problem.head_dim, vector.BYTES * 8 // self.bits):
                vector.prefetch(keys, start + place)

    def _block(self, keys: Any, bounds: list[Any], find: Any, tokens: Any, slot: Any) -> None:
        """Bound ``tokens`` keys, which ``find`` places, and write the bounds at ``slot``."""
        kind = f"{self._dtype}x{self.lanes}"
        step = self.columns * self.lanes
        for first in range(0, self.problem.head_dim, step):
            places = range(first, min(first + step, self.problem.head_dim), self.lanes)
            lows = [vector.array(self.lanes, self._dtype) for _ in places]
            highs = [vector.array(self.lanes, self._dtype) for _ in places]
            start = T.bind(find(T.int32(0)))
            for place, low, high in zip(places, lows, highs, strict=True):
                key = T.bind(self._ordered(keys.vload([start + place], kind)))
                vector.store(low, [0], key)
                vector.store(high, [0], key)
            with T.serial(tokens - 1) as token:
                start = T.bind(find(token + 1))
                for place, low, high in zip(places, lows, highs, strict=True):
                    key = T.bind(self._ordered(keys.vload([start + place], kind)))
                    vector.store(low, [0], T.min(low.vload([0], kind), key))
                    vector.store(high, [0], T.max(high.vload([0], kind), key))
            for bound, found in zip(bounds, (lows, highs), strict=True):
                for place, extreme in zip(places, found, strict=True):
                    value = self._ordered(T.bind(extreme.vload([0], kind)))
                    vector.store(bound, [slot + place], value)

    def _ordered(self, value: Any) -> Any:
        """Flip all bits but the sign of negative values: order of floats becomes of integers."""
        key = T.bind(value)
        last = self.bits - 1

        def each(number: int) -> Any:
            return T.broadcast(T.IntImm(self._dtype, number), self.lanes)

        flips = T.bitwise_and(T.shift_right(key, each(last)), each((1 << last) - 1))
        return T.bitwise_xor(key, flips)
