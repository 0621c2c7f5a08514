"""What a kernel of grouped products works on: the packed weights and the areas of its workspace.

A *pair* is a token and one of its slots; its *position* is where it lies once pairs are ordered by
expert. Activations, sums and all else of a product lie in the order of positions, so the rows of an
expert follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.expert_weights import GROUP
from wattune.schedules.areas import LINE, Areas
from wattune.schedules.cpu.grouped_gemm.layout import ROWS, VECTOR, ExpertLayout
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# A job: an expert, the first of its positions, how many there are.
JOB = 3
# Bytes of an activation, by how it is stored.
ACTIVATION_BYTES = {"bf16": 2, "f32": 4, "int8": 1}


@dataclass(frozen=True)
class Stage:
    """One product: its weights, how many rows of an expert it takes at once.

    ``streams``: 2 where gate and up are read side by side, in one pass over the activations.
    ``columns``: how many are multiplied before the next block of weights; sums wait in memory for
    the next such slice. 0: all. ``panel``: how many blocks a slice of the activations meets before
    the next slice; 0: all of a part.
    """

    product: ExpertLayout
    row_block: int
    streams: int = 1
    columns: int = 0
    panel: int = 1

    @property
    def groups(self) -> int:
        """Vectors of 16 rows of weights that are multiplied at once."""
        return self.streams * self.product.groups

    @property
    def blocks(self) -> int:
        """Blocks of a stream."""
        return self.product.blocks // self.streams

    @property
    def slices(self) -> int:
        """Slices of columns."""
        return -(-self.product.columns // self.columns) if self.columns else 1

    @property
    def slice_bytes(self) -> int:
        """Bytes of a block that belong to a slice."""
        product = self.product
        if product.scale_groups:
            return self.columns // GROUP * product.group_bytes
        return self.columns // product.lane_columns * product.step_bytes

    def offset(self, group: int) -> int:
        """Return how far from the first vector of a step a group's is, in bytes."""
        stream, inner = divmod(group, self.product.groups)
        return stream * self.product.half_blocks * self.product.block_bytes + inner * VECTOR

    def row_offset(self, group: int) -> int:
        """Return the same in rows of weights: where a group's sums lie in a row of sums."""
        stream, inner = divmod(group, self.product.groups)
        return stream * self.product.half_rows + inner * ROWS


@dataclass(frozen=True)
class Plan:
    """Sizes of one kernel.

    ``stages``: the products in the order of use. ``activation``: how activations are stored, a
    key of `ACTIVATION_BYTES`. ``order``: ``expert`` reads an expert once for all its rows, ``pair``
    once for each. ``parts``: into how many an expert's rows of weights are cut, for threads.
    ``prefetch``: how many bytes ahead of a stream are fetched. ``next_block``: whether tiles that
    are not the only one of a block fetch the next block instead.
    """

    tokens: int
    top_k: int
    experts: int
    threads: int
    stages: tuple[Stage, ...]
    activation: str
    order: str
    parts: int
    prefetch: int
    next_block: bool
    unroll: int
    scratch: int = 0

    @property
    def products(self) -> tuple[ExpertLayout, ...]:
        """The weights in the order of use."""
        return tuple(stage.product for stage in self.stages)

    @property
    def row_block(self) -> int:
        """The most rows of an expert that are multiplied at once."""
        return max(stage.row_block for stage in self.stages)

    @property
    def pairs(self) -> int:
        """Pairs of the bucket."""
        return self.tokens * self.top_k

    @property
    def positions(self) -> int:
        """Rows of activations and sums: whole blocks may be read behind the last one."""
        return self.pairs + self.row_block

    @property
    def width(self) -> int:
        """Columns of the widest activation row."""
        return max(p.padded_columns for p in self.products)

    def stride(self, product: ExpertLayout) -> int:
        """Bytes from one activation row to the next: an odd number of lines.

        Rows a multiple of 4 KiB apart would share one set of the first cache.
        """
        size = product.padded_columns * ACTIVATION_BYTES[self.activation]
        return (-(-size // LINE) | 1) * LINE

    @property
    def scale_groups(self) -> int:
        """Sums of quantised activations that a row has: one a group of columns, at least one."""
        return max(1, *(p.scale_groups for p in self.products))

    @property
    def areas(self) -> Areas:
        """Return the workspace."""
        sums = max(p.padded_rows for p in self.products)
        return Areas.of(
            lists=4 * (2 + JOB * self.pairs + 2 * self.pairs + self.experts),
            wide=4 * self.threads * self.width,
            scales=4 * self.positions,
            scratch=self.threads * self.scratch,
            totals=4 * self.positions * self.scale_groups,
            activations=self.positions * max(self.stride(p) for p in self.products),
            # Reading `up` by whole vectors goes beyond the last row.
            sums=4 * (self.positions * sums + self.width),
        )


@dataclass(frozen=True)
class Memory:
    """The areas of the workspace as buffers, each of one type.

    LLVM takes accesses of different types for different memory.
    """

    lists: Buffer
    wide: Buffer
    scales: Buffer
    totals: Buffer
    activations: Buffer
    sums: Buffer
    starts: Mapping[str, int]

    @classmethod
    def of(cls, plan: Plan, tensors: Tensors) -> Memory:
        """Declare the views."""
        areas, data = plan.areas, tensors["workspace"].data

        def view(kind: str, size: int) -> Buffer:
            return T.decl_buffer((T.int64(areas.bytes // size),), kind, data=data)

        floats, words, raw = view("float32", 4), view("int32", 4), view("uint8", 1)
        return cls(words, floats, floats, words, raw, floats, areas.starts)

    def scratch(self, plan: Plan, worker: Expr) -> Expr:
        """Return the byte of ``activations`` where a thread's own memory starts."""
        return T.cast(worker, "int64") * plan.scratch + self.starts["scratch"]

    def at(self, area: str, index: Expr) -> Expr:
        """Return where an element of an area lies in its buffer."""
        size = 1 if area == "activations" else 4
        return T.cast(index, "int64") + self.starts[area] // size

    def sums_at(self, product: ExpertLayout, position: Expr) -> Expr:
        """Return where a position's row of sums starts."""
        return self.at("sums", T.cast(position, "int64") * product.padded_rows)


@dataclass(frozen=True)
class Lists:
    """The integer lists: how many jobs and positions, the jobs, where pairs lie, whose they are."""

    memory: Memory
    plan: Plan

    def _at(self, first: int, index: Expr) -> Expr:
        return self.memory.at("lists", first + index)

    def load(self, name: str, index: Expr) -> Expr:
        """Load an element of a list."""
        return self.memory.lists[self._at(self._first(name), index)]

    def store(self, name: str, index: Expr, value: Expr) -> None:
        """Store an element of a list."""
        T.buffer_store(self.memory.lists, value, [self._at(self._first(name), index)])

    def _first(self, name: str) -> int:
        pairs = self.plan.pairs
        firsts = {"counts": 0, "jobs": 2, "position": 2 + JOB * pairs}
        firsts["pair"] = firsts["position"] + pairs
        firsts["cursor"] = firsts["pair"] + pairs
        return firsts[name]
