"""The first kernel of `select_union`: the best tokens of each head, the best one first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.gate_parts import block_count
from wattune.ops.select_union import TOKENS, SelectUnion
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Expr, Place, for_each, view
from wattune.schedules.cuda.selection.bitonic import Area, network_size, sort
from wattune.schedules.cuda.selection.keys import keys_of_row
from wattune.schedules.cuda.selection.listing import Listing
from wattune.schedules.cuda.selection.radix import Radix, Selection
from wattune.schedules.program import Tensors

_PAIR, _TOKEN = 8, 4
# A pair is a number below 2^63: the key's complement, so that the best comes first, and the token.
_TOKEN_BITS = 31
_LAST = (1 << 63) - 1


@dataclass(frozen=True)
class Rank:
    """Emits the kernel; pairs of a key and a token are sorted ``inside`` shared memory, or not.

    The workspace begins with the ranked tokens [batch, query_heads, middle]; pairs lie behind.
    """

    problem: SelectUnion
    radix: Radix
    inside: bool

    @property
    def size(self) -> int:
        """Return the pairs of a network."""
        return network_size(self.problem.middle)

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory."""
        pairs = _PAIR * self.size if self.inside else 0
        return self.radix.shared + pairs + 4 * 4 * self.radix.threads // WARP

    @property
    def moved(self) -> int:
        """Return the bytes that sorting a list moves."""
        stages = self.size.bit_length() - 1
        return 2 * _PAIR * self.size * stages * (stages + 1) // 2

    @property
    def _rows(self) -> int:
        return self.problem.batch * self.problem.query_heads

    @property
    def _pairs(self) -> int:
        """Return the byte of the workspace that pairs start at."""
        return block_count(self._rows * self.problem.middle * _TOKEN, _PAIR) * _PAIR

    @property
    def bytes(self) -> int:
        """Return the bytes of the workspace."""
        return self._pairs + (0 if self.inside else self._rows * self.size * _PAIR)

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return a thread block for each request and head."""
        return sizes["batch"] * self.problem.query_heads

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Rank the tokens of one head."""
        problem = self.problem
        request = T.truncdiv(place.block, problem.query_heads)
        length = T.bind(tensors["seq_lens"][request])
        row = T.bind(T.cast(place.block, "int64") * tensors.sizes[TOKENS])
        key = keys_of_row(tensors["logits"], row, None, 0)
        if not problem.middle:
            return
        pairs = self._area(tensors, place)
        ranked = view(tensors["workspace"], "int32")
        start = T.bind(T.cast(place.block, "int64") * problem.middle)
        # Shorter requests keep all of their tokens.
        with T.If(length > problem.token_budget), T.Then():
            first, end = T.int32(problem.sinks), T.bind(length - problem.recent)
            selection = Selection(self.radix, place.thread)
            listing = Listing(self.radix.threads, place.thread, key, selection)
            selection.select(key, first, end, T.int32(problem.middle))
            listing.count(first, end)

            def pair(at: Expr, token: Expr) -> None:
                high = T.cast(T.bitwise_not(key(token)), "int64")
                low = T.cast(token, "int64")
                pairs.put(at, T.bitwise_or(T.shift_left(high, T.int64(_TOKEN_BITS)), low))

            listing.write(pair, first, end)
            rest = self.size - problem.middle
            for_each(
                place.thread,
                self.radix.threads,
                rest,
                lambda at: pairs.put(problem.middle + at, T.int64(_LAST)),
            )
            sort(pairs, self.size, place.thread, self.radix.threads)

            def copy(at: Expr) -> None:
                token = T.bitwise_and(pairs[at], T.int64((1 << _TOKEN_BITS) - 1))
                ptx.put(ranked, start + at, T.cast(token, "int32"))

            for_each(place.thread, self.radix.threads, problem.middle, copy)

    def _area(self, tensors: Tensors, place: Place) -> Area:
        """Return where a thread block's pairs are."""
        if self.inside:
            return Area(T.alloc_shared((self.size,), "int64"), T.int32(0))
        start = T.cast(place.block, "int64") * self.size + self._pairs // _PAIR
        return Area(view(tensors["workspace"], "int64"), T.bind(start))
