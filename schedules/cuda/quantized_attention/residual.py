"""Attention of a warp to tiles of 16 rows of the residual, in the cache's dtype.

Tiles lie in shared memory as they lie in the cache, rows a bit apart. Rows that no query sees
become zeros: they may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.softmax import LOG2_E
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.listed import Listed
from wattune.schedules.cuda.quantized_attention.memory import Memory
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import (
    COLUMNS,
    DEPTH,
    HALF,
    PART,
    ROWS,
    WIDE,
    QuantizedPlan,
)
from wattune.schedules.cuda.quantized_attention.queries import query_at
from wattune.schedules.cuda.quantized_attention.scores import Scores
from wattune.schedules.cuda.quantized_attention.softmax import WEIGHT_UNIT, State
from wattune.schedules.cuda.quantized_attention.tiles import Request

Expr = Any
Buffer = Any

# Elements of a wide access.
_ELEMENTS = WIDE // HALF


@dataclass(frozen=True)
class Residual:
    """Emits a warp's loop over residual tiles."""

    plan: QuantizedPlan
    place: Place
    block: Block
    memory: Memory
    request: Request
    scores: Scores

    @property
    def _loads(self) -> int:
        """Return the wide loads of a key's row by each of four neighbouring lanes."""
        return -(-self.plan.problem.head_dim // PART)

    def emit(self, first: Expr, count: Expr, state: State) -> None:
        """Emit attention to ``count`` tiles from ``first`` on, each so many warps further."""
        plan = self.plan
        with T.If(count > 0), T.Then():
            queries = self._queries()
            listed = Listed(plan, self.place, self.block)
            with T.serial(count) as i:
                tile = T.bind(first + i * plan.teams)
                start = T.bind(self.request.packed + tile * ROWS)
                blocks = listed.blocks_from(start, ROWS)
                for which in ("k", "v"):
                    self._copy(which, tile, start, listed, blocks)
                ptx.copies_end()
                ptx.copies_wait(0)
                ptx.warp_barrier()
                self._tile(start, listed, blocks, queries, state)
                ptx.warp_barrier()

    def _queries(self) -> Buffer:
        """Load queries: four words of a panel and load are those of two products."""
        plan, place = self.plan, self.place
        words = self.block.view("q", "uint32")
        found = ptx.registers(4 * plan.panels * self._loads, "uint32")
        for panel in range(plan.panels):
            row = T.bind(place.query_row(panel, place.row))
            base = query_at(plan, place, T.min(row, plan.item_rows - 1))
            for load in range(self._loads):
                at = 4 * (panel * self._loads + load)
                for i in range(4):
                    ptx.put(found, at + i, T.uint32(0))
                inside = T.And(row < plan.item_rows, self._inside(load))
                with T.If(inside), T.Then():
                    word = base + T.cast(place.column * 4 + load * DEPTH, "int64")
                    ptx.load_wide(found, at, words, word, 4)
        return found

    def _inside(self, load: int) -> Expr:
        """Say whether the row has the elements of the lane's load."""
        width = self.plan.problem.head_dim
        if PART * (load + 1) <= width:
            return T.bool(True)
        return self.place.column * _ELEMENTS < width - PART * load

    def _row_at(self, which: str) -> Expr:
        """Return the byte where the tile of keys or values begins."""
        return self.memory.begin + (ROWS * self.plan.row_bytes("k") if which == "v" else 0)

    def _copy(self, which: str, tile: Expr, start: Expr, listed: Listed, blocks: Expr) -> None:
        plan, place = self.plan, self.place
        width = plan.cache.width(which)
        rows = self.block.view(f"{which}_residual", plan.problem.dtype)
        index = place.head_index(plan.problem.kv_heads) * plan.problem.block_tokens
        base = T.bind((index + tile * ROWS) * width)
        pieces = width // _ELEMENTS
        for first in range(0, ROWS * pieces, WARP):
            piece = T.bind(place.lane + first)
            row = T.bind(T.truncdiv(piece, pieces))
            within = T.truncmod(piece, pieces) * WIDE
            into = self._row_at(which) + row * plan.row_bytes(which) + within
            source = rows.ptr_to([base + T.cast(piece * _ELEMENTS, "int64")])
            seen = self._seen(start + row, start, listed, blocks)
            count = T.Select(seen, T.int32(WIDE), T.int32(0))
            ptx.copy_or_zero(self.memory.bytes.ptr_to([into]), source, count)

    def _seen(self, position: Expr, start: Expr, listed: Listed, blocks: Expr) -> Expr:
        """Say whether some query sees a position."""
        inside = T.And(position >= self.request.first, position < self.request.length)
        return T.And(inside, listed.has(position, start, blocks))

    def _tile(
        self, start: Expr, listed: Listed, blocks: Expr, queries: Buffer, state: State
    ) -> None:
        plan = self.plan
        scores = [ptx.registers(4, "float32") for _ in range(plan.panels)]
        self._products(queries, scores)
        for octet in range(2):
            position = T.bind(start + COLUMNS * octet + self.place.row)
            seen = T.bind(self._seen(position, start, listed, blocks))
            self.scores.hide(scores, octet, position, seen)
        right = ptx.registers(2 * plan.panels, "uint32")
        for panel, score in enumerate(scores):
            state.raise_to(panel, [T.max(score[i], score[2 + i]) for i in range(2)])
            for octet in range(2):
                weights = ptx.registers(2, "float32")
                for i in range(2):
                    at = 2 * panel + i
                    ptx.put(weights, i, ptx.exp2(score[2 * octet + i] - state.references[at]))
                    ptx.put(state.totals, at, state.totals[at] + weights[i])
                low, high = (weights[i] * T.float32(WEIGHT_UNIT) for i in range(2))
                word = right[2 * panel + octet]
                ptx.pack(word, low, high, plan.problem.dtype)
                ptx.transpose(word, word)
        self._values(right, state)

    def _products(self, queries: Buffer, scores: list[Buffer]) -> None:
        plan, place = self.plan, self.place
        stride = plan.row_bytes("k")
        for score in scores:
            for i in range(4):
                ptx.put(score, i, T.float32(0))
        keys = [ptx.registers(4, "uint32") for _ in range(2)]
        for load in range(self._loads):
            for octet, words in enumerate(keys):
                row = place.row + COLUMNS * octet
                at = self._row_at("k") + row * stride + place.column * WIDE + load * 4 * WIDE
                self.memory.load(words, at, 4)
                if PART * (load + 1) > plan.problem.head_dim:
                    # Behind the row lies anything.
                    for i in range(4):
                        kept = T.Select(self._inside(load), words[i], T.uint32(0))
                        ptx.put(words, i, kept)
            for half in range(2):
                left = [keys[x][2 * half + i] for i in range(2) for x in range(2)]
                for panel, score in enumerate(scores):
                    at = 4 * (panel * self._loads + load) + 2 * half
                    ptx.multiply_add(
                        [score[i] for i in range(4)],
                        left,
                        [queries[at], queries[at + 1]],
                        plan.problem.dtype,
                    )
        unit = T.float32(plan.problem.scale * LOG2_E)
        for score in scores:
            for i in range(4):
                ptx.put(score, i, self.scores.finish(score[i] * unit))

    def _values(self, right: Buffer, state: State) -> None:
        plan, place = self.plan, self.place
        stride = plan.row_bytes("v")
        left = ptx.registers(8, "uint32")
        for load in range(plan.value_loads):
            channel = load * PART + place.row * 4
            for half in range(2):
                pair = [ptx.registers(2, "uint32") for _ in range(2)]
                for token, words in enumerate(pair):
                    row = place.column * 2 + (COLUMNS * half + token)
                    at = self._row_at("v") + row * stride + channel * HALF
                    self.memory.load(words, at, 2)
                for octet in range(4):
                    selector = T.uint32((0x5410, 0x7632)[octet % 2])
                    first, second = (words[octet // 2] for words in pair)
                    ptx.permute_bytes(left[4 * half + octet], first, second, selector)
            for pair_at in range(2):
                rows = [left[4 * half + 2 * pair_at + i] for half in range(2) for i in range(2)]
                for panel in range(plan.panels):
                    words = [right[2 * panel + half] for half in range(2)]
                    places = state.places(panel, load, pair_at)
                    ptx.multiply_add(places, rows, words, plan.problem.dtype)
