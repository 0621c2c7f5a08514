"""Sizes that a schedule of quantised attention decides: tiles, passes, scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wattune.ops.kv_quantization import LANES, QUAD
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.ops.quantized_kv_cache import QuantizedKVCache
from wattune.schedules.areas import Areas
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.cpu.quantized_attention.product import BLOCK, Product

Expr = Any

# Quads in a block of numbers: loops over vectors of codes take so many at a time.
STEP = BLOCK // QUAD
# Descriptions of tiles that are kept ahead of the one in work.
RING = 8


@dataclass(frozen=True)
class Segment:
    """Vectors of key codes ``first`` to ``end``, of which ``fields`` are multiplied."""

    fields: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True)
class QuantizedPlan:
    """One schedule of one problem.

    ``base`` is the plan of what quantised and dense attention share; its ``block`` is the tile.
    ``rows`` queries are multiplied with each vector of codes, ``unroll`` vectors of keys a step,
    ``columns`` vectors of values a pass. ``ahead`` says which of the next tiles is prefetched; 0
    is none.
    """

    base: Plan
    problem: QuantizedDecodeAttention
    product: Product
    rows: int
    unroll: int
    columns: int
    ahead: int
    # Whether nothing beyond the cache is prefetched: a search for its page takes long on some CPUs.
    inside: bool = False

    @property
    def cache(self) -> QuantizedKVCache:
        """Return the geometry of the cache."""
        return self.problem.quantized

    @property
    def tile(self) -> int:
        """Return the tokens of a tile; a packed block is a whole number of tiles."""
        return self.base.block

    @property
    def fields(self) -> int:
        """Return the codes of a byte."""
        return self.cache.fields

    @property
    def per_channel(self) -> bool:
        """Say whether keys have a scale for each channel."""
        return self.cache.per_channel("k")

    @property
    def span(self) -> int:
        """Return the tokens of a tile that share their keys' scales."""
        return min(self.tile, self.problem.group_size) if self.per_channel else self.tile

    @property
    def spans(self) -> int:
        """Return the spans of a tile."""
        return self.tile // self.span

    @property
    def key_groups(self) -> int:
        """Return the groups of channels of a key."""
        return self.cache.groups("k")

    @property
    def value_groups(self) -> int:
        """Return the groups of channels of a value."""
        return self.cache.groups("v")

    @property
    def key_vectors(self) -> int:
        """Return the vectors of codes of 16 keys."""
        return self.problem.head_dim // (QUAD * self.fields)

    @property
    def parts(self) -> int:
        """Return the registers of a vector of codes."""
        return LANES // self.product.lanes

    @property
    def query_words(self) -> int:
        """Return the words of a query's numbers."""
        return self.product.words(self.problem.head_dim)

    @property
    def weight_words(self) -> int:
        """Return the words of a query's weights for one group of channels."""
        return self.product.words(self.tile)

    def query_at(self, row: Expr, group: int) -> Expr:
        """Return the word at which the numbers of a query's group of channels start."""
        size = self.problem.head_dim // self.key_groups
        return row * self.query_words + self.product.words(group * size)

    def weight_at(self, row: Expr, group: Expr) -> Expr:
        """Return the word at which the numbers of a row's weights for a group start."""
        return (row * self.value_groups + group) * self.weight_words

    def passes(self) -> tuple[tuple[int, int, int], ...]:
        """Return each kind of pass over rows: rows of a pass, first row, how many passes."""
        whole, rest = divmod(self.base.item_rows, self.rows)
        found = [(self.rows, 0, whole)] if whole else []
        return (*found, (rest, whole * self.rows, 1)) if rest else tuple(found)

    @property
    def key_steps(self) -> int:
        """Return the steps of a pass over a tile's keys."""
        return self.tile // (LANES * self.unroll)

    @property
    def value_blocks(self) -> int:
        """Return the steps over tokens of some columns of a tile's values."""
        return max(1, self.tile // BLOCK)

    @property
    def value_steps(self) -> int:
        """Return the steps of a pass over a tile's values."""
        return -(-self.problem.value_dim // LANES // self.columns) * self.value_blocks

    @property
    def score_points(self) -> int:
        """Return where codes of values are asked for: steps over keys, rows of the softmax."""
        return self.key_steps * self.pass_count + self.base.item_rows

    @property
    def value_points(self) -> int:
        """Return where codes of keys are asked for: rows of weights, steps over values."""
        return self.base.item_rows + self.value_steps * self.pass_count

    @property
    def pass_count(self) -> int:
        """Return the passes over rows."""
        return -(-self.base.item_rows // self.rows)

    def channel(self, field: int, vector: int) -> int:
        """Return the first channel of a field of a vector of key codes."""
        return field * (self.problem.head_dim // self.fields) + QUAD * vector

    def segments(self, group: int) -> tuple[Segment, ...]:
        """Return where the channels of a group lie in the vectors of key codes."""
        size = self.problem.head_dim // self.key_groups
        spans: dict[tuple[int, int], list[int]] = {}
        for field in range(self.fields):
            start = self.channel(field, 0)
            first = max(0, group * size - start) // QUAD
            end = min(self.key_vectors, ((group + 1) * size - start) // QUAD)
            if first < end:
                spans.setdefault((first, end), []).append(field)
        return tuple(Segment(tuple(fields), *span) for span, fields in spans.items())

    def scratch(self) -> Scratch:
        """Return the workspace."""
        problem, rows = self.problem, self.base.item_rows
        items = problem.batch * problem.kv_heads
        parts = items * self.base.splits if self.base.splits > 1 else 0
        shared = Areas.of(
            sums=4 * parts * rows * problem.value_dim, totals=8 * parts * rows, counts=4 * items
        )
        own = Areas.of(**dict(self._own(rows)))
        return Scratch(shared, own, self.base.threads)

    def _own(self, rows: int) -> Iterator[tuple[str, int]]:
        """Yield a thread's areas and their bytes."""
        problem, tile = self.problem, self.tile
        yield "query", 4 * rows * problem.head_dim
        yield "numbers", 4 * rows * self.query_words * self.spans
        # The unit of a query's numbers and the sum that its keys' zeros are multiplied by.
        yield "units", 8 * rows * self.key_groups * self.spans
        yield "scores", 4 * rows * tile
        yield "weights", 4 * rows * self.value_groups * self.weight_words
        yield "weight_units", 4 * rows * self.value_groups
        yield "factors", 4 * rows * LANES
        yield "zeros", 4 * rows * self.value_groups * LANES
        yield "sums", 4 * rows * problem.value_dim
        yield "state", 8 * rows * self.base.lanes
        yield "totals", 8 * rows
        yield "params", 8 * max(problem.head_dim, tile * self.key_groups, tile * self.value_groups)
