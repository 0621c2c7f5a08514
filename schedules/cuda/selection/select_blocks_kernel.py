"""The kernel of `select_blocks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.gate_parts import SLOTS
from wattune.ops.select_blocks import MILLION, SelectBlocks
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, Place, ceildiv, for_each
from wattune.schedules.cuda.selection.base import slot_count
from wattune.schedules.cuda.selection.keys import (
    KEY_OF_INFINITY,
    KEY_OF_MINUS_INFINITY,
    NO_KEY_ABOVE,
    KeyOf,
    key_of,
    keys_of_row,
    score_of,
)
from wattune.schedules.cuda.selection.listing import Listing
from wattune.schedules.cuda.selection.radix import Radix, Selection
from wattune.schedules.cuda.values import reduce_block
from wattune.schedules.program import Tensors
from wattune.schedules.space import Value


@dataclass(frozen=True)
class Select:
    """Emits the kernel; the first ``kept`` keys of a row stay in shared memory."""

    problem: SelectBlocks
    radix: Radix
    kept: int

    @classmethod
    def of(cls, problem: SelectBlocks, values: Mapping[str, Value]) -> Select:
        """Return the kernel of these knob values."""
        names = ("threads", "digit_bits", "histograms")
        return cls(problem, Radix(*(int(values[name]) for name in names)), int(values["kept"]))

    @property
    def tokens(self) -> int:
        """Return the rows of scores of a request and head."""
        return max(1, self.problem.query_tokens)

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory."""
        return 4 * self.kept + self.radix.shared + 4 * 4 * self.radix.threads // WARP

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the rows of scores."""
        return sizes["batch"] * (self.tokens * self.problem.kv_heads)

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Select from one row."""
        problem, thread = self.problem, place.thread
        line = T.bind(T.truncdiv(place.block, problem.kv_heads))
        request = T.bind(T.truncdiv(line, self.tokens))
        length = tensors["seq_lens"][request] - (self.tokens - 1) + (line - request * self.tokens)
        blocks = ceildiv(T.max(length, 0), problem.block_size)
        blocks = T.bind(T.min(blocks, slot_count(tensors)))
        first = T.bind(T.min(blocks, problem.sink_blocks))
        end = T.bind(T.max(first, blocks - problem.local_blocks))
        room = T.bind(problem.max_blocks - (first + blocks - end))
        key = self._keys(tensors, place, blocks)
        selection = Selection(self.radix, thread)
        listing = Listing(self.radix.threads, thread, key, selection)
        if problem.method == "threshold":
            selection.set(self._threshold(key, blocks, thread), T.int32(0))
            self._fit(selection, listing, first, end, room)
        elif problem.forced == "beside":
            selection.select(key, T.int32(0), blocks, self._best(blocks))
            self._fit(selection, listing, first, end, room, T.int32(0))
        else:
            wanted = self._best(blocks) - (first + blocks - end)
            selection.select(key, first, end, T.bind(T.min(wanted, room)))
            listing.count(first, end)
        row = T.cast(place.block, "int64") * problem.max_blocks
        self._write(tensors, listing, place, row, (first, end, blocks))

    def _keys(self, tensors: Tensors, place: Place, blocks: Expr) -> KeyOf:
        """Bring a row's keys into shared memory; return what reads them."""
        row = T.bind(T.cast(place.block, "int64") * tensors.sizes[SLOTS])
        scores = tensors["scores"]
        if not self.kept:
            return keys_of_row(scores, row, None, 0)
        shared = T.alloc_shared((self.kept,), "uint32")
        kept = T.bind(T.min(blocks, self.kept))

        def keep(at: Expr) -> None:
            ptx.put(shared, at, key_of(scores[row + at]))

        for_each(place.thread, self.radix.threads, kept, keep)
        return keys_of_row(scores, row, shared, self.kept)

    def _best(self, blocks: Expr) -> Expr:
        """Return how many blocks the method chooses."""
        problem = self.problem
        if problem.method == "budget":
            return T.int32(problem.token_budget // problem.block_size)
        parts = T.cast(blocks, "int64") * problem.parts
        best = T.cast(ceildiv(parts, MILLION), "int32")
        return T.bind(T.max(best, T.min(blocks, problem.min_blocks)))

    def _fit(
        self,
        selection: Selection,
        listing: Listing,
        first: Expr,
        end: Expr,
        room: Expr,
        since: Expr | None = None,
    ) -> None:
        """Count what is selected; where it is more than there is room for, select again."""
        listing.count(first, end, since)
        with T.If(listing.total > room), T.Then():
            selection.select(listing.key, first, end, room)
            listing.count(first, end)

    def _threshold(self, key: KeyOf, blocks: Expr, thread: Expr) -> Expr:
        """Return the greatest key whose score's softmax does not exceed the threshold."""
        threads = self.radix.threads
        best = T.alloc_local((1,), "uint32")
        total = T.alloc_local((1,), "float32")
        maxima = T.alloc_shared((threads // WARP,), "uint32")
        sums = T.alloc_shared((threads // WARP,), "float32")
        ptx.put(best, 0, T.uint32(KEY_OF_MINUS_INFINITY))
        ptx.put(total, 0, T.float32(0))
        for_each(thread, threads, blocks, lambda at: ptx.put(best, 0, T.max(best[0], key(at))))
        reduce_block(best, maxima, thread, threads, T.max)
        top = T.bind(score_of(best[0]))

        def add(at: Expr) -> None:
            found = T.bind(key(at))
            # Infinite scores share all of the weight.
            weight = T.Select(found == best[0], T.float32(1), T.exp(score_of(found) - top))
            ptx.put(total, 0, total[0] + weight)

        for_each(thread, threads, blocks, add)
        reduce_block(total, sums, thread, threads, lambda a, b: a + b)
        excess = T.bind(T.log(total[0]) + T.float32(math.log(self.problem.threshold)))
        infinite = T.Select(
            excess < T.float32(0), T.uint32(KEY_OF_INFINITY - 1), T.uint32(NO_KEY_ABOVE)
        )
        # top + excess in a register, so that the difference is of what was rounded.
        ptx.put(total, 0, top + excess)
        up = T.Select(total[0] - top > excess, T.uint32(1), T.uint32(0))
        bound = T.bind(key_of(total[0]) - up)
        bound = T.Select(best[0] == T.uint32(KEY_OF_INFINITY), infinite, bound)
        nothing = best[0] == T.uint32(KEY_OF_MINUS_INFINITY)
        return T.bind(T.Select(nothing, T.uint32(NO_KEY_ABOVE), bound))

    def _write(
        self,
        tensors: Tensors,
        listing: Listing,
        place: Place,
        row: Expr,
        bounds: tuple[Expr, Expr, Expr],
    ) -> None:
        """Write a list and its length."""
        first, end, blocks = bounds
        indices: Buffer = tensors["block_indices"]
        start = T.bind(row)
        total = T.bind(listing.total)
        listing.write(lambda at, block: ptx.put(indices, start + first + at, block), first, end)
        count = T.bind(first + total + blocks - end)

        def each(amount: Expr, emit: Callable[[Expr], None]) -> None:
            for_each(place.thread, listing.threads, amount, emit)

        after = T.bind(start + first + total)
        each(first, lambda at: ptx.put(indices, start + at, at))
        each(blocks - end, lambda at: ptx.put(indices, after + at, end + at))
        rest = self.problem.max_blocks - count
        each(rest, lambda at: ptx.put(indices, start + count + at, T.int32(-1)))
        with T.If(place.thread == 0), T.Then():
            ptx.put(tensors["block_counts"], T.cast(place.block, "int64"), count)
