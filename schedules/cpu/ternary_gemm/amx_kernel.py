"""Emit an AMX kernel: panels of decoded weights, times tiles of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import amx, vector
from wattune.schedules.cpu.ternary_gemm.amx_plan import Plan
from wattune.schedules.cpu.ternary_gemm.base import quantize_tokens
from wattune.schedules.cpu.ternary_gemm.layout import VECTOR
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.program import Tensors

Expr = Any


@dataclass(frozen=True)
class Span:
    """A block of columns of one panel: where it starts and how long it is.

    ``first`` says whether sums start at zero here (a run-time value in a loop), ``last`` whether
    they are complete.
    """

    panel: Expr
    scratch: Expr
    step: Expr
    tile: Expr
    vectors: int
    tiles: int
    first: Expr | bool
    last: bool


@dataclass(frozen=True)
class Kernel:
    """Emits one AMX kernel. ``ahead``: units decoded before their use; 0 decodes panels whole."""

    problem: TernaryGemm
    plan: Plan
    decode: Callable[[Expr], list[Expr]]
    ahead: int
    prefetch: int

    def emit(self, tensors: Tensors) -> None:
        """Quantise all tokens, then give every thread its share of the panels."""
        plan = self.plan
        workspace, work = plan.workspace, tensors["workspace"]
        quantize_tokens(self.problem, workspace, plan.columns, plan.threads, tensors)
        loop = T.parallel if plan.threads > 1 else T.serial
        with loop(plan.threads) as thread:
            scratch = workspace.scratch + thread * plan.scratch_bytes
            entries = vector.constant(plan.configuration())
            vector.store(
                work, [scratch], T.reinterpret(f"uint8x{len(plan.configuration())}", entries)
            )
            amx.configure(work, scratch)
            start = thread * plan.panels // plan.threads
            stop = (thread + 1) * plan.panels // plan.threads
            with T.serial(stop - start) as i:
                self._panel(tensors, start + i, scratch)
            amx.release()

    def _panel(self, tensors: Tensors, panel: Expr, scratch: Expr) -> None:
        """Multiply the rows of one panel, a block of columns after the other."""
        plan = self.plan
        last = plan.k_blocks - 1

        def columns(block: Expr, at: int, first: Expr | bool) -> None:
            step = block * plan.block_units * plan.unit_vectors
            tile = block * plan.block_units * plan.unit_tiles
            vectors, tiles = plan.span(at)
            self._columns(
                tensors,
                Span(panel, scratch, step, tile, vectors, tiles, first, at == last),
            )

        if last:
            with T.serial(last) as block:
                columns(block, 0, block == 0)
        columns(last, last, last == 0)

    def _columns(self, tensors: Tensors, span: Span) -> None:
        """Multiply one block of columns with all tokens."""
        plan = self.plan
        tokens = tensors.sizes["tokens"]
        count = T.cast((tokens + plan.token_block - 1) // plan.token_block, "int32")
        if self.ahead:
            with T.serial(plan.parts) as part:
                self._register_block(tensors, span, 0, part, decoding=True)
        else:
            with T.serial(span.vectors) as at:
                for group in range(plan.panel_groups):
                    self._decode(tensors, span, at, group)
        with T.serial(1 if self.ahead else 0, count) as block, T.serial(plan.parts) as part:
            self._register_block(tensors, span, block, part, decoding=False)

    def _register_block(
        self, tensors: Tensors, span: Span, block: Expr, part: Expr, decoding: bool
    ) -> None:
        """Multiply ``token_tiles`` by ``group_tiles`` tiles; store them after the last columns."""
        plan, work = self.plan, tensors["workspace"]
        sums = span.scratch + plan.sums_at
        if plan.k_blocks > 1:
            sums = sums + (block * plan.parts + part) * plan.sums * amx.TILE_BYTES
        self._start(work, span, sums)
        if decoding:
            self._dots_decoding(tensors, span, block, part)
        else:
            with T.serial(span.tiles) as k:
                self._dots(work, span, block, part, k)
        for i in range(plan.sums):
            amx.store(i, work, sums + i * amx.TILE_BYTES, amx.ROW_BYTES)
        if span.last:
            self._store(tensors, span, sums, block, part)

    def _start(self, work: Any, span: Span, sums: Expr) -> None:
        """Clear the sums, or load those of the columns before."""

        def clear() -> None:
            for i in range(self.plan.sums):
                amx.zero(i)

        def load() -> None:
            for i in range(self.plan.sums):
                amx.load(i, work, sums + i * amx.TILE_BYTES, amx.ROW_BYTES)

        if isinstance(span.first, bool):
            (clear if span.first else load)()
            return
        with T.If(span.first):
            with T.Then():
                clear()
            with T.Else():
                load()

    def _dots(self, work: Any, span: Span, block: Expr, part: Expr, k: Expr) -> None:
        """Multiply 64 columns: the fewer tiles are held while the others stream."""
        plan = self.plan
        base = plan.sums + plan.held
        tokens_held = plan.token_tiles <= plan.group_tiles

        def load_tokens(tile: int, t: int) -> None:
            row = (block * plan.token_block + t * plan.rows) * plan.workspace.stride
            amx.load(tile, work, row + (span.tile + k) * amx.ROW_BYTES, plan.workspace.stride)

        def load_codes(tile: int, g: int) -> None:
            at = ((part * plan.group_tiles + g) * plan.block_tiles + k) * amx.TILE_BYTES
            amx.load(tile, work, span.scratch + plan.panel_at + at, amx.ROW_BYTES)

        hold, stream = (load_tokens, load_codes) if tokens_held else (load_codes, load_tokens)
        for h in range(plan.held):
            hold(plan.sums + h, h)
        for s in range(plan.sums // plan.held):
            streamed = base + s % (amx.TILES - base)
            stream(streamed, s)
            for h in range(plan.held):
                held = plan.sums + h
                if tokens_held:
                    amx.dot_s8u8(h * plan.group_tiles + s, held, streamed)
                else:
                    amx.dot_s8u8(s * plan.group_tiles + h, streamed, held)

    def _dots_decoding(self, tensors: Tensors, span: Span, block: Expr, part: Expr) -> None:
        """Multiply all columns of the span and decode each unit ``ahead`` of its use.

        Vector instructions of later units run beside the tile products of earlier ones.
        """
        plan, work = self.plan, tensors["workspace"]
        units, rest = divmod(span.vectors, plan.unit_vectors)
        lead = min(self.ahead, units)

        def decode(at: Expr) -> None:
            for g in range(plan.group_tiles):
                self._decode(tensors, span, at, part * plan.group_tiles + g)

        with T.serial(lead * plan.unit_vectors) as at:
            decode(at)
        with T.serial(units - lead) as unit:
            done = 0
            for j in range(plan.unit_tiles):
                until = -(-plan.unit_vectors * (j + 1) // plan.unit_tiles)
                for v in range(done, until):
                    decode((unit + lead) * plan.unit_vectors + v)
                done = until
                self._dots(work, span, block, part, unit * plan.unit_tiles + j)
        with T.serial(rest) as at:
            decode(units * plan.unit_vectors + at)
        used = (units - lead) * plan.unit_tiles
        with T.serial(span.tiles - used) as k:
            self._dots(work, span, block, part, used + k)

    def _decode(self, tensors: Tensors, span: Span, at: Expr, group: Expr) -> None:
        """Decode one vector of a group of the panel into rows of tiles."""
        plan, weight = self.plan, self.plan.weight
        whole = span.panel * plan.panel_groups + group
        if plan.total_groups % plan.panel_groups:
            # Beyond the blob the last group is decoded again; its sums are not stored.
            whole = T.min(whole, plan.total_groups - 1)
        row = whole // weight.groups * weight.block_bytes + whole % weight.groups * VECTOR
        # Variables, because TVM's passes copy expressions: five digits would load five times.
        source = T.bind(row + (span.step + at) * weight.groups * VECTOR)
        if self.prefetch:
            vector.prefetch(tensors["weight"], source + self.prefetch)
        code = T.bind(vector.load_bytes(tensors["weight"], source))
        first = group * plan.block_tiles * amx.TILE_ROWS + at * weight.digits
        to = T.bind(span.scratch + plan.panel_at + first * VECTOR)
        for d, codes in enumerate(self.decode(code)):
            vector.store(tensors["workspace"], [to + d * VECTOR], codes)

    def _store(self, tensors: Tensors, span: Span, sums: Expr, block: Expr, part: Expr) -> None:
        """Store the rows of the tokens that exist."""
        plan, work = self.plan, tensors["workspace"]
        storer = Storer(self.problem, plan.workspace)
        for t in range(plan.token_tiles):
            with T.serial(plan.rows) as i:
                token = block * plan.token_block + t * plan.rows + i
                with T.If(token < tensors.sizes["tokens"]), T.Then():
                    for g in range(plan.group_tiles):
                        tile = (t * plan.group_tiles + g) * amx.TILE_BYTES
                        at = sums + tile + i * amx.ROW_BYTES
                        group = span.panel * plan.panel_groups + part * plan.group_tiles + g
                        storer.emit(
                            vector.load_as(work, at, "int32", vector.LANES),
                            work,
                            tensors.get("weight_scale"),
                            tensors["y"],
                            token,
                            group * vector.LANES,
                        )
