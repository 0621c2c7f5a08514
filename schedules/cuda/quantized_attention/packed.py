"""Attention of a warp to its packed tiles: a ring of tiles under way, scores, weights, sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.copies import Copies
from wattune.schedules.cuda.quantized_attention.keys import Keys, Slot
from wattune.schedules.cuda.quantized_attention.memory import Memory
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import PART, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.queries import Queries
from wattune.schedules.cuda.quantized_attention.scores import Scores
from wattune.schedules.cuda.quantized_attention.softmax import State
from wattune.schedules.cuda.quantized_attention.tiles import Tile, Tiles
from wattune.schedules.cuda.quantized_attention.values import Scales, Values

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Packed:
    """Emits a warp's loop over tiles."""

    plan: QuantizedPlan
    place: Place
    memory: Memory
    queries: Queries
    keys: Keys
    values: Values
    scores: Scores
    copies: Copies
    quad: Expr

    @classmethod
    def of(
        cls, plan: QuantizedPlan, place: Place, block: Block, memory: Memory, scores: Scores
    ) -> Packed:
        """Load queries and find which tokens are in the lane's row."""
        queries = Queries.load(plan, place, block)
        quad = _quad(plan, place)
        return cls(
            plan,
            place,
            memory,
            queries,
            Keys.declare(plan, place, queries),
            Values.declare(plan, place),
            scores,
            Copies(plan, place, block, memory.bytes, quad),
            quad,
        )

    def emit(self, tiles: Tiles, first: Expr, count: Expr, state: State) -> None:
        """Emit attention to ``count`` places from ``first`` on, each so many warps further."""
        plan, warps = self.plan, self.plan.teams

        def place_of(i: Expr) -> Expr:
            return first + i * warps

        tiles.look_ahead(place_of(T.int32(0)))
        for stage in range(plan.stages - 1):
            with T.If(T.int32(stage) < count), T.Then():
                self._fetch(tiles, place_of(T.int32(stage)), T.int32(stage))
            ptx.copies_end()
        with T.serial(count) as i:
            ptx.copies_wait(plan.stages - 2)
            ptx.warp_barrier()
            later = T.bind(i + (plan.stages - 1))
            with T.If(later < count), T.Then():
                self._fetch(tiles, place_of(later), T.truncmod(later, plan.stages))
            ptx.copies_end()
            stage = T.bind(T.truncmod(i, plan.stages))
            tile = self.memory.tile(stage)
            with T.If(tile.low < tile.high), T.Then():
                self._tile(tile, stage, state)
        ptx.copies_wait(0)
        ptx.warp_barrier()

    def _fetch(self, tiles: Tiles, at: Expr, stage: Expr) -> None:
        """Begin the copies of a tile, note what it is and look at the next one."""
        tile = tiles.next(T.bind(at))
        self.memory.note(stage, tile)
        with T.If(tile.low < tile.high), T.Then():
            self.copies.emit(tile, T.bind(self.memory.slot(stage)))
        tiles.look_ahead(at + self.plan.teams)

    def _tile(self, tile: Tile, stage: Expr, state: State) -> None:
        """Emit attention to a tile that has landed."""
        plan = self.plan
        slot = Slot(plan, T.bind(self.memory.slot(stage)), self.memory.words)
        end = T.bind(tile.start + plan.tile)
        whole = T.And(tile.low <= tile.start, tile.high >= end)
        whole = T.bind(T.And(whole, self.scores.seen_by_all(tile.start, end)))
        steps = plan.tile // plan.token_groups // plan.step
        with T.serial(plan.token_groups) as group:
            if plan.cache.per_channel("k"):
                self.keys.group(slot, group)
            with T.serial(steps) as step:
                self._step(tile, slot, T.bind(group * steps + step), whole, state)

    def _step(self, tile: Tile, slot: Slot, step: Expr, whole: Expr, state: State) -> None:
        """Emit attention to the tokens of a step."""
        plan = self.plan
        parts = plan.step // PART
        scored: list[tuple[list[Buffer], Scales]] = []
        for i in range(parts):
            part = T.bind(step * parts + i)
            quad = T.bind(part * (PART // QUAD) + self.quad)
            found = [ptx.registers(8, "float32") for _ in range(plan.panels)]
            self.keys.scores(slot, part, quad, found)
            self._finish(found, tile, quad, whole)
            scored.append((found, Scales.load(plan, slot, quad)))
        for panel in range(plan.panels):
            state.raise_to(panel, [_candidate(scored, panel, i) for i in range(2)])
        for i, (found, scales) in enumerate(scored):
            right = ptx.registers(self.values.right_words, "uint32")
            self.values.weights(found, scales, state, right)
            self.values.add(slot, T.bind(step * parts + i), right, state)

    def _finish(self, found: list[Buffer], tile: Tile, quad: Expr, whole: Expr) -> None:
        for panel, score in enumerate(found):
            for i in range(8):
                unit = self.queries.units[2 * panel + i % 2]
                ptx.put(score, i, self.scores.finish(score[i] * unit))
        with T.If(T.Not(whole)), T.Then():
            for octet in range(QUAD):
                position = T.bind(tile.start + QUAD * quad + octet)
                seen = T.bind(T.And(position >= tile.low, position < tile.high))
                self.scores.hide(found, octet, position, seen)


def _quad(plan: QuantizedPlan, place: Place) -> Expr:
    """Return the quad of a part whose tokens are in the lane's row.

    Rows 2 c and 2 c + 1 of weights go to lanes % 4 = c, and those read the codes of these quads.
    """
    if plan.value_fields == 1:
        return T.bind(4 * (place.row & 1) + (place.row >> 1))
    return place.row


def _candidate(scored: list[tuple[list[Buffer], Scales]], panel: int, i: int) -> Expr:
    """Return the greatest score + log2(scale) of a column."""
    terms = [
        found[panel][2 * octet + i] + scales.logs[octet]
        for found, scales in scored
        for octet in range(QUAD)
    ]
    most = terms[0]
    for term in terms[1:]:
        most = T.max(most, term)
    return most
