"""Scores of slots: rows of per-block data are read once, the query stays in registers.

    # a team of lanes holds a query [width], each lane the pieces c = lane, lane + lanes, ...
    for some slots of the team at once:                     # all loads first
        score = sum over the team of fold(query piece, row piece)
    scores of slots behind a request's blocks are -inf

A thread block walks a stretch of one request and KV head's slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS, block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, Place, ceildiv
from wattune.schedules.cuda.selection.base import power_of_two, slot_count
from wattune.schedules.cuda.values import WORD, WORDS, load, reduce_lanes, values_of
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Value, powers_of_two
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# A sum, a word's place among those of a lane, and that word of every source: the new sum.
Fold = Callable[[Expr, int, Sequence[Expr]], Expr]

_MOST_WORDS = 128
_OTHER_REGISTERS = 24
# Of an SM: registers, and threads on the GPUs that have the fewest.
_REGISTERS = 64 << 10
_MOST_THREADS = 1536


@dataclass(frozen=True)
class Stretch:
    """What a thread block works on: slots from ``first`` to ``end``, those below ``used`` read."""

    request: Expr
    head: Expr
    row: Expr
    first: Expr
    used: Expr
    end: Expr
    length: Expr


@dataclass(frozen=True)
class Stream:
    """How rows are shared among threads: ``slots`` a team at once, ``steps`` times.

    ``sources`` rows of ``width`` values of a dtype belong to a slot.
    """

    dtype: str
    width: int
    sources: int
    threads: int
    lanes: int
    slots: int
    steps: int
    resident: int

    @classmethod
    def of(cls, problem: Any, width: int, sources: int, values: Mapping[str, Value]) -> Stream:
        """Return the stream of these knob values."""
        names = ("threads", "lanes", "slots", "steps", "resident")
        return cls(problem.dtype, width, sources, *(int(values[name]) for name in names))

    @property
    def row_pieces(self) -> int:
        """Return the pieces of a row."""
        return self.width // values_of(self.dtype)

    @property
    def pieces(self) -> int:
        """Return the pieces of a row that a lane reads; the last ones may lie behind the row."""
        return block_count(self.row_pieces, self.lanes)

    @property
    def at_once(self) -> int:
        """Return the slots that a thread block reads at once."""
        return self.threads // self.lanes * self.slots

    @property
    def span(self) -> int:
        """Return the slots of a stretch."""
        return self.at_once * self.steps

    @property
    def words(self) -> int:
        """Return the words that a lane loads at once."""
        return WORDS * self.pieces * self.sources * self.slots

    @property
    def registers(self) -> int:
        """Return about how many registers a thread needs: words, a query, its masks, places."""
        values = WORD // itemsize(self.dtype)
        return self.words + self.pieces * WORDS * (1 + values) + _OTHER_REGISTERS

    def blocks(self, heads: int) -> Callable[[Mapping[str, Expr]], Expr]:
        """Return what counts the stretches of all requests and heads."""
        return lambda sizes: sizes["batch"] * heads * ceildiv(sizes[SLOTS], self.span)

    def stretch(self, problem: Any, tensors: Tensors, place: Place) -> Stretch:
        """Return the stretch of a thread block."""
        slots = slot_count(tensors)
        stretches = T.bind(ceildiv(slots, self.span))
        line = T.bind(T.truncdiv(place.block, stretches))
        request = T.bind(T.truncdiv(line, problem.kv_heads))
        first = T.bind((place.block - line * stretches) * self.span)
        end = T.bind(T.min(slots, first + self.span))
        length = T.bind(tensors["seq_lens"][request])
        used = T.bind(T.min(ceildiv(length, problem.block_size), end))
        row = T.bind(T.cast(line, "int64") * slots)
        return Stretch(request, line - request * problem.kv_heads, row, first, used, end, length)

    def query(self, shared: Buffer, place: Place) -> Buffer:
        """Return a lane's pieces of a query in shared memory, in registers."""
        each = values_of(self.dtype)
        found = ptx.registers(self.pieces * each, "float32")
        for i in range(self.pieces * each):
            ptx.put(found, i, T.float32(0))
        for piece in range(self.pieces):
            at = place.thread % self.lanes + piece * self.lanes
            with self._inside(piece, at):
                for i in range(each):
                    ptx.put(found, piece * each + i, shared[at * each + i])
        return found

    @contextmanager
    def _inside(self, piece: int, at: Expr) -> Iterator[None]:
        """Emit what is done only where a lane's piece is one of the row's."""
        if (piece + 1) * self.lanes <= self.row_pieces:
            yield
        else:
            with T.If(at < self.row_pieces), T.Then():
                yield

    def emit(
        self, sources: Sequence[Buffer], scores: Buffer, stretch: Stretch, place: Place, fold: Fold
    ) -> None:
        """Score the slots of a stretch.

        ``sources`` are rows of words. ``fold(sum, word, bits)`` returns the sum with a word of the
        lane's pieces, which is ``bits`` in the sources.
        """
        team, lane = T.truncdiv(place.thread, self.lanes), T.truncmod(place.thread, self.lanes)
        teams = self.threads // self.lanes
        read = ptx.registers(self.words, "uint32")
        if self.row_pieces % self.lanes:
            # What lies behind a row counts as zeros.
            for i in range(self.words):
                ptx.put(read, i, T.uint32(0))
        score = ptx.registers(self.slots, "float32")
        with T.serial(
            T.truncdiv(stretch.end - stretch.first + self.at_once - 1, self.at_once)
        ) as step:
            start = T.bind(stretch.first + step * self.at_once + team)
            with T.If(stretch.first + step * self.at_once < stretch.used), T.Then():
                for i in range(self.slots):
                    slot = T.min(start + i * teams, stretch.used - 1)
                    self._load(read, i, sources, T.bind(stretch.row + slot), lane)
                for i in range(self.slots):
                    self._score(score, i, read, fold)
            for i in range(self.slots):
                slot = T.bind(start + i * teams)
                with T.If(T.And(lane == 0, slot < stretch.end)), T.Then():
                    nothing = T.float32(float("-inf"))
                    found = T.Select(slot < stretch.used, score[i], nothing)
                    ptx.put(scores, stretch.row + slot, found)

    def _load(self, read: Buffer, i: int, sources: Sequence[Buffer], row: Expr, lane: Expr) -> None:
        """Load a lane's pieces of a slot."""
        for piece in range(self.pieces):
            column = lane + piece * self.lanes
            with self._inside(piece, column):
                for s, source in enumerate(sources):
                    first = ((i * self.pieces + piece) * self.sources + s) * WORDS
                    load(read, first, WORDS, source, (row * self.row_pieces + column) * WORDS)

    def _score(self, score: Buffer, i: int, read: Buffer, fold: Fold) -> None:
        """Sum a slot's pieces over the team; two sums, so that additions overlap."""
        sums = ptx.registers(2, "float32")
        for j in range(2):
            ptx.put(sums, j, T.float32(0))
        for piece in range(self.pieces):
            for word in range(WORDS):
                first = (i * self.pieces + piece) * self.sources * WORDS + word
                bits = [read[first + s * WORDS] for s in range(self.sources)]
                ptx.put(sums, word % 2, fold(sums[word % 2], piece * WORDS + word, bits))
        ptx.put(sums, 0, sums[0] + sums[1])
        reduce_lanes(sums, self.lanes, lambda a, b: a + b)
        ptx.put(score, i, sums[0])

    def counts(self, problem: Any, queries: float) -> Counts:
        """Count the stream, and ``queries`` values that thread blocks read for their queries."""
        size = itemsize(self.dtype)
        rows = problem.batch * problem.kv_heads
        slots = float(rows * block_count(problem.context, problem.block_size))
        moved = slots * (self.sources * self.width * size + 4)
        words = slots * self.width * size / (WORD * WARP)
        each = self.sources + 2 * WORD // size
        folding = slots * self.lanes / WARP * (4 + 2 * self.lanes.bit_length())
        return Counts(
            bytes={"memory": moved, "l2": moved + queries * size, "l1": moved + queries * size},
            operations={"alu": words * each + folding + 2 * queries / WARP},
            tiles={"slots": float(self.span), "pieces": float(self.pieces)},
            parallelism=float(rows * block_count(int(slots) // rows, self.span)),
            registers=float(self.registers),
            code=float(self.words * (1 + each)),
        )


def stream_knobs(problem: Any, width: int, sources: int, target: Target) -> tuple[Knob, ...]:
    """Return the knobs of a stream; by default every SM has a few thread blocks."""
    pieces = width // values_of(problem.dtype)
    lanes = min(WARP, power_of_two(pieces))
    if pieces > 4 * lanes:
        # Some lanes idle at the end of a row, instead of all having much of it.
        lanes = min(WARP, 1 << (pieces - 1).bit_length())
    each = block_count(pieces, lanes) * sources
    slots = next(s for s in (4, 2, 1) if s == 1 or s * each <= 8)
    threads = 256
    rows = problem.batch * problem.kv_heads
    turns = rows * block_count(problem.context, problem.block_size) / (threads // lanes * slots)
    steps = (1, 2, 4, 8, 16)
    fitting = [s for s in steps if turns / s >= 4 * target.cores]
    return (
        Knob("threads", (128, 256, 512), threads),
        Knob("lanes", powers_of_two(1, WARP), lanes),
        Knob("slots", (1, 2, 4, 8), slots),
        Knob("steps", steps, fitting[-1] if fitting else 1),
        Knob("resident", (1, 2, 3, 4, 6, 8), 1),
    )


def stream_rules(problem: Any, width: int, sources: int) -> tuple[Constraint, ...]:
    """Return the rules that what a thread holds fits in registers."""

    def stream(values: Mapping[str, Value]) -> Stream:
        return Stream.of(problem, width, sources, values)

    return (
        Constraint(
            f"a lane must load at most {_MOST_WORDS} words at once",
            lambda v: stream(v).words <= _MOST_WORDS,
        ),
        Constraint(
            "threads of all blocks that an SM has must have registers",
            lambda v: (
                int(v["threads"]) * int(v["resident"]) <= _MOST_THREADS
                and (
                    v["resident"] == 1
                    or stream(v).registers * int(v["threads"]) * int(v["resident"]) <= _REGISTERS
                )
            ),
        ),
    )
