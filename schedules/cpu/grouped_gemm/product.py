"""Emit one product: parts of experts for each thread, in them blocks of weights times rows.

    for (job, part) of the thread's:
        for panel of blocks in the part:          # where columns are sliced; else block after block
            for slice of the columns:
                for block in the panel:
                    for chunk of the job's rows:  sums[chunk, block] += x[chunk] @ block^T

A block's slice is in a near cache for all rows but the first, and with panels of many blocks so is
a slice of the activations for all blocks but the first. Sums that wait in memory for the next slice
are added to in the order of the columns: results do not depend on slices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.grouped_gemm.plan import JOB, Lists, Memory, Plan, Stage
from wattune.schedules.cpu.grouped_gemm.route import JOBS
from wattune.schedules.cpu.grouped_gemm.rows import gated
from wattune.schedules.cpu.grouped_gemm.tile import F32, Ahead, Engine, Slice, Tile
from wattune.schedules.cpu.tasks import ceildiv, spread

Expr = Any
Buffer = Any

# A tile fetches at least 1 / 2^MOST_SHIFT of the next block.
MOST_SHIFT = 4


@dataclass(frozen=True)
class Product:
    """Emits the product of one stage."""

    plan: Plan
    stage: Stage
    engine: Engine
    weights: Buffer
    memory: Memory
    lists: Lists

    def emit(self) -> None:
        """Emit the tasks of all threads."""
        plan, stage = self.plan, self.stage
        parts = min(plan.parts, stage.blocks)

        def task(worker: Expr, number: Expr) -> None:
            job = T.bind(T.truncdiv(number, parts))
            part = T.bind(number - job * parts)
            expert, first, count = (
                T.bind(self.lists.load("jobs", job * JOB + i)) for i in range(JOB)
            )
            base = T.bind(T.cast(expert, "int64") * stage.product.expert_bytes)

            def block(number: Expr, slice: Slice | None) -> None:
                self._block(base, number, slice, first, count, worker)

            start = T.bind(part * stage.blocks // parts)
            self._walk(start, T.bind((part + 1) * stage.blocks // parts), block)

        spread(
            plan.threads,
            self.lists.load("counts", JOBS) * parts,
            task,
            lambda worker: self.engine.begin(plan, self.memory, worker),
            self.engine.end,
        )

    def _walk(self, start: Expr, stop: Expr, emit: Callable[[Expr, Slice | None], None]) -> None:
        """Emit the blocks of a part, slice by slice within each panel."""
        stage = self.stage
        if stage.slices == 1:
            with T.serial(stop - start) as i:
                emit(T.bind(start + i), None)
            return
        panel = min(stage.panel or stage.blocks, stage.blocks)
        with T.serial(ceildiv(stop - start, panel)) as number:
            first = T.bind(start + number * panel)
            size = T.bind(T.min(stop - first, panel))
            with T.serial(stage.slices) as s, T.serial(size) as i:
                slice = Slice(stage.columns, s, T.bind(s == stage.slices - 1))
                emit(T.bind(first + i), slice)

    def _block(
        self, base: Expr, block: Expr, slice: Slice | None, first: Expr, count: Expr, worker: Expr
    ) -> None:
        """Emit a block, or a slice of it, times all rows of a job."""
        stage = self.stage
        at = T.bind(base + T.cast(block, "int64") * stage.product.block_bytes)
        start = at
        if slice is not None:
            start = T.bind(at + T.cast(slice.index, "int64") * stage.slice_bytes)
        with T.serial(ceildiv(count, stage.row_block)) as chunk:
            done = T.bind(chunk * stage.row_block)
            tile = Tile(
                plan=self.plan,
                stage=stage,
                memory=self.memory,
                weights=self.weights,
                block=block,
                base=at,
                start=start,
                slice=slice,
                first=T.bind(first + done),
                chunk=chunk,
                rows=stage.row_block,
                worker=worker,
                ahead=self._ahead(chunk, count),
            )
            self._chunk(tile, T.bind(count - done))

    def _ahead(self, chunk: Expr, rows: Expr) -> Ahead:
        """Bind what full tiles of rows fetch: each of a block's a part of the next block.

        Only the first tile of a block finds it in memory, too early for the arithmetic of the
        others to hide that. Where there is but one it fetches the stream.
        """
        plan, stage = self.plan, self.stage
        if not plan.next_block:
            return Ahead(plan.prefetch)
        size = distance = stage.product.block_bytes
        if stage.slices > 1:
            size = stage.slice_bytes
            distance = size if stage.panel == 1 else distance
        full = T.truncdiv(rows, stage.row_block)
        shift = sum(
            (T.cast(full >= 1 << power, "int64") for power in range(1, MOST_SHIFT + 1)), T.int64(0)
        )
        shift = T.bind(shift)
        later = distance + T.cast(chunk, "int64") * T.shift_right(T.int64(size), shift)
        return Ahead(T.bind(T.Select(shift > 0, later, T.int64(plan.prefetch))), shift)

    def _chunk(self, most: Tile, left: Expr) -> None:
        """Emit the tile of the least size that holds the rows that are left."""

        def tile(count: int) -> None:
            ahead = most.ahead if count == most.rows else Ahead(self.plan.prefetch)
            self._tile(dataclasses.replace(most, rows=count, ahead=ahead), left)

        def choose(sizes: tuple[int, ...]) -> None:
            if len(sizes) == 1:
                tile(sizes[0])
                return
            with T.If(left <= sizes[0]):
                with T.Then():
                    tile(sizes[0])
                with T.Else():
                    choose(sizes[1:])

        choose(self.engine.row_sizes(most.rows))

    def _tile(self, tile: Tile, left: Expr) -> None:
        """Emit a tile and the store of its sums."""
        value = self.engine.emit(tile)

        def store(finish: bool) -> None:
            for r in range(tile.rows):
                with T.If(left > r), T.Then():
                    for g in range(tile.groups):
                        found = value(r, g)
                        if finish:
                            found = self.engine.finish(tile, found, r, g)
                        vector.store(
                            self.memory.sums, [tile.sums_at(r, g)], T.reinterpret(F32, found)
                        )
            if finish and self.stage.streams > 1:
                self._activate(tile, T.min(left, tile.rows))

        if tile.slice is None:
            store(finish=True)
            return
        with T.If(tile.slice.last):
            with T.Then():
                store(finish=True)
            with T.Else():
                store(finish=False)

    def _activate(self, tile: Tile, rows: Expr) -> None:
        """Emit silu(gate) * up in the place of gate, while both are near."""
        sums, groups = self.memory.sums, self.stage.product.groups
        with T.serial(rows) as r:
            for g in range(groups):
                at = T.bind(tile.sums_at(r, g))
                gate = T.bind(sums.vload([at], F32))
                up = T.bind(sums.vload([tile.sums_at(r, groups + g)], F32))
                vector.store(sums, [at], gated(gate, up))
