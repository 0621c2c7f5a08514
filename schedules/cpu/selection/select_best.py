"""The best of rows of scores, in order of index: what the templates of selection are made of.

    bound = what the n-th best of some maxima reach                # at least n scores reach it
         or what n scores should reach, judged by a sample          # if they do not: -inf
    for chunk of the row:
        list += the indices and scores that reach the bound
        if the list has more than n: keep its n best, bound = the least of them

Several rows go through each phase side by side, and their n-th best are found in step (`Search`).
Lists stay in ascending order of indices, so of equal scores the first ones are kept. NaN counts as
-inf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes
from wattune.schedules.cpu.selection.select_rows import Row
from wattune.schedules.cpu.selection.select_search import UNROLL, Search, magnitude, number
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any
Buffer = Any
_LINE = 16


@dataclass(frozen=True)
class Plan:
    """Sizes: lanes of a vector, scores of a chunk, vectors of maxima or of a sample for a bound.

    ``rows`` go side by side. ``room`` is the elements of a list's scores, and as many of its
    indices.
    """

    lanes: Lanes
    chunk: int
    groups: int
    sample: int
    rows: int
    room: int

    @classmethod
    def of(cls, lanes: Lanes, chunk: int, groups: int, sample: int, most: int, rows: int) -> Plan:
        """Return a plan for lists of ``most`` entries.

        A chunk and the vectors that a search wants fit in beside them.
        """
        entries = max(most + chunk, (groups + sample) * lanes.count)
        entries += (UNROLL + 1) * lanes.count
        return cls(lanes, chunk, groups, sample, rows, -(-entries // _LINE) * _LINE)

    @property
    def bytes(self) -> int:
        """Return the bytes of the lists of rows that go side by side."""
        return 8 * self.room * self.rows


class Best:
    """Lists of scores and indices in the workspace; emits the statements that fill them."""

    def __init__(self, plan: Plan, workspace: Buffer, workers: int, worker: Expr) -> None:
        """Declare the state of a worker's lists."""
        self.plan, self.lanes, self.chunk = plan, plan.lanes, plan.chunk
        entries = (2 * workers * plan.rows * plan.room,)
        self.values = T.decl_buffer(entries, "float32", data=workspace.data)
        self.indices = T.decl_buffer(entries, "int32", data=workspace.data)
        self.first_base = T.bind(T.cast(worker, "int64") * (2 * plan.rows * plan.room))
        self.search = Search(self.values, self.lanes, plan.rows)
        # Of each row: where its scores start, first and end of them; the most that are kept, the
        # list's entries, those at its front that are passed over.
        self.starts = vector.array(plan.rows, "int64")
        names = ("first", "end", "most", "size", "passed")
        self.held = {name: vector.array(plan.rows, "int32") for name in names}
        self.floors, self.bounds = (vector.array(plan.rows, "float32") for _ in range(2))

    def base(self, row: Expr) -> Expr:
        """Return where a row's scores lie in the lists."""
        return T.bind(self.first_base + T.cast(row, "int64") * (2 * self.plan.room))

    def index_base(self, row: Expr) -> Expr:
        """Return where a row's indices lie in the lists."""
        return T.bind(self.base(row) + self.plan.room)

    def get(self, name: str, row: Expr) -> Expr:
        """Return a number of a row."""
        return T.bind(self.held[name][row])

    def put(self, name: str, row: Expr, value: Expr) -> None:
        """Emit that a number of a row changes."""
        vector.store(self.held[name], [row], value)

    def begin(self, row: Expr, scores: Row, most: Expr, floor: Expr) -> None:
        """Emit that ``row`` is to list the best ``most`` scores that are not below ``floor``."""
        vector.store(self.starts, [row], scores.start)
        vector.store(self.floors, [row], floor)
        vector.store(self.bounds, [row], floor)
        numbers = {"first": scores.first, "end": scores.end, "most": most}
        for name, value in {**numbers, "size": T.int32(0), "passed": T.int32(0)}.items():
            self.put(name, row, value)

    def fill(self, scores: Buffer, count: Expr) -> None:
        """Emit the lists of the first ``count`` rows."""
        if self.plan.groups or self.plan.sample:
            self._bound(scores, count)
        chunks = vector.array(1, "int32")
        vector.store(chunks, [0], T.int32(0))
        with T.serial(count) as row:
            most = T.bind(T.max(chunks[0], ceildiv(self._row(scores, row).count, self.chunk)))
            vector.store(chunks, [0], most)
        with T.serial(chunks[0]) as step:
            with T.serial(count) as row:
                every = self._row(scores, row)
                part = every.part(T.bind(every.first + step * self.chunk), self.chunk)
                self._append(row, part)
                if self.plan.sample:
                    self._mend(row, part, step)
            self.trim(count)

    def within(self, row: Expr, first: Expr, end: Expr) -> None:
        """Emit that indices outside of first..end are dropped, from both ends of a list."""
        size, passed = (vector.array(1, "int32") for _ in range(2))
        vector.store(size, [0], self.get("size", row))
        vector.store(passed, [0], T.int32(0))
        at = self.index_base(row)
        with T.While(T.And(passed[0] < size[0], self.indices[at + passed[0]] < first)):
            vector.store(passed, [0], passed[0] + 1)
        with T.While(T.And(passed[0] < size[0], self.indices[at + size[0] - 1] >= end)):
            vector.store(size, [0], size[0] - 1)
        self.put("passed", row, passed[0])
        self.put("size", row, size[0] - passed[0])

    def trim(self, count: Expr) -> None:
        """Emit that lists of more than ``most`` entries keep their best ones.

        The bounds of these rows become the least scores that are kept.
        """
        self.search.clear(magnitude)
        with T.serial(count) as row, T.If(self._too_long(row)), T.Then():
            start = T.bind(self.base(row) + self.get("passed", row))
            size, most = self.get("size", row), self.get("most", row)
            self.search.open(row, start, size, most, T.int32(0))
        self.search.run(count)
        with T.serial(count) as row, T.If(self._too_long(row)), T.Then():
            self._keep(row)

    def _too_long(self, row: Expr) -> Expr:
        return self.held["size"][row] > self.held["most"][row]

    def _row(self, scores: Buffer, row: Expr) -> Row:
        start = T.bind(self.starts[row])
        return Row(scores, start, self.get("first", row), self.get("end", row))

    def _bound(self, scores: Buffer, count: Expr) -> None:
        """Emit higher bounds, from scores that stand for all of a row."""
        self.search.clear(number)
        with T.serial(count) as row:
            every = self._row(scores, row)
            part, most = every.part(every.first, self.chunk), self.get("most", row)
            if self.plan.groups:
                self._pick_maxima(row, part, most)
            else:
                self._pick_sample(row, part, most)
        self.search.run(count)
        with T.serial(count) as row:
            found = T.Select(self.search.used(row), self.search.found(row), self.floors[row])
            vector.store(self.bounds, [row], T.max(self.floors[row], found))

    def _pick_maxima(self, row: Expr, part: Row, most: Expr) -> None:
        """Emit the search in maxima of groups of a lane's scores each: ``most`` groups do."""
        lanes, groups = self.lanes, self.plan.groups
        width, base = groups * lanes.count, self.base(row)
        maxima = [vector.array(lanes.count, "float32") for _ in range(groups)]
        for maximum in maxima:
            vector.store(maximum, [0], lanes.each(-INFINITY))
        with T.serial(T.truncdiv(part.count, width)) as step:
            for i, maximum in enumerate(maxima):
                score = T.bind(part.load(lanes, part.first + step * width + i * lanes.count))
                vector.store(maximum, [0], T.max(score, maximum.vload([0], lanes.f32)))
        for i, maximum in enumerate(maxima):
            found = maximum.vload([0], lanes.f32)
            vector.store(self.values, [base + i * lanes.count], found)
        with T.If(T.And(most > 0, most <= width)), T.Then():
            self.search.open(row, base, T.int32(width), most, T.truncdiv(most, 8))

    def _pick_sample(self, row: Expr, part: Row, most: Expr) -> None:
        """Emit the search in a sample, for what rather more than ``most`` scores should reach."""
        lanes, sample, base = self.lanes, self.plan.sample, self.base(row)
        size, count = sample * lanes.count, T.bind(part.count)
        stride = T.bind(T.truncdiv(count, size) * lanes.count)
        # No guess where the list would hold the half of the scores, or the sample a fourth.
        with T.If(T.And(stride >= 4 * lanes.count, count >= 2 * most)), T.Then():
            with T.serial(sample) as i:
                score = part.load(lanes, part.first + i * stride)
                vector.store(self.values, [base + i * lanes.count], lanes.real(score))
            share = T.cast(most, "float32") / T.cast(count, "float32") * size
            # Three standard deviations, and some for small numbers; some more do no harm.
            rank = T.bind(T.cast(share + T.sqrt(share) * T.float32(2) + T.float32(2), "int32"))
            self.search.open(row, base, T.int32(size), rank, T.truncdiv(rank, 16))

    def _mend(self, row: Expr, part: Row, step: Expr) -> None:
        """Emit the list of the first chunk once more, where a guessed bound was too high."""
        floor, few = self.floors[row], self.held["size"][row] < self.held["most"][row]
        with T.If(T.And(T.And(step.equal(0), self.bounds[row] > floor), few)), T.Then():
            self.put("size", row, T.int32(0))
            vector.store(self.bounds, [row], floor)
            self._append(row, part)

    def _append(self, row: Expr, part: Row) -> None:
        """Emit the list of what reaches the bound."""
        lanes, bound = self.lanes, T.bind(self.bounds[row])
        entries = self._entries(row, self.get("size", row))

        def body(scores: Expr, indices: Expr, last: Expr | None) -> None:
            reached = scores >= lanes.splat(bound)
            if last is not None:
                reached = T.bitwise_and(reached, lanes.last(last))
            entries.few(scores, indices, reached)

        part.each(lanes, body)
        self.put("size", row, entries.size[0])

    def _entries(self, row: Expr, size: Expr) -> Entries:
        return Entries(self, self.base(row), self.index_base(row), size)

    def _keep(self, row: Expr) -> None:
        """Emit that a list keeps its best scores."""
        if not self.lanes.tables:
            self._keep_some(row)
            return
        # Without ties to drop, as nearly always: a comparison, a compression.
        with T.If(self.search.exact(row)):
            with T.Then():
                self._keep_exact(row)
            with T.Else():
                self._keep_some(row)

    def _keep_exact(self, row: Expr) -> None:
        """Emit that a list keeps the scores that reach what a search found, as many as wanted."""
        lanes, passed = self.lanes, self.get("passed", row)
        base, index_base = T.bind(self.base(row) + passed), T.bind(self.index_base(row) + passed)
        least = self.search.found(row)
        entries = Entries(self, base, index_base, T.int32(0))
        with T.serial(ceildiv(self.get("size", row), lanes.count)) as step:
            at = T.bind(T.cast(step * lanes.count, "int64"))
            scores = T.bind(self.values.vload([base + at], lanes.f32))
            indices = T.bind(self.indices.vload([index_base + at], lanes.i32))
            entries.all(scores, indices, scores >= lanes.splat(least))
        # Lanes beyond the end may have come as well.
        self.put("size", row, self.get("most", row))
        vector.store(self.bounds, [row], least)

    def _keep_some(self, row: Expr) -> None:
        """Emit that a list keeps the scores above what a search found, and the first equal ones."""
        lanes, search = self.lanes, self.search
        size, passed = self.get("size", row), self.get("passed", row)
        base, index_base = T.bind(self.base(row) + passed), T.bind(self.index_base(row) + passed)
        least, spare = search.found(row), vector.array(1, "int32")
        vector.store(spare, [0], self.get("most", row) - search.above(row))
        entries = Entries(self, base, index_base, T.int32(0))
        with T.serial(ceildiv(size, lanes.count)) as step:
            at = T.bind(T.cast(step * lanes.count, "int64"))
            scores = T.bind(self.values.vload([base + at], lanes.f32))
            indices = T.bind(self.indices.vload([index_base + at], lanes.i32))
            # Lanes beyond the end may equal -inf, but come when no place is left.
            equal = scores.equal(lanes.splat(least))
            ties = T.bind(lanes.counted(equal))
            with T.If(T.And(spare[0] > 0, spare[0] < ties)):
                with T.Then():
                    entries.some(scores, indices, least, spare)
                with T.Else():
                    taken = T.bind(T.Select(spare[0] > 0, T.int32(1), T.int32(0)))
                    tied = T.bitwise_and(equal, lanes.splat(taken) > lanes.each_int(0))
                    entries.all(scores, indices, T.bitwise_or(scores > lanes.splat(least), tied))
                    vector.store(spare, [0], spare[0] - taken * ties)
        self.put("size", row, entries.size[0])
        vector.store(self.bounds, [row], least)


class Entries:
    """The end of a list, kept in a register while it grows."""

    def __init__(self, best: Best, base: Expr, index_base: Expr, size: Expr) -> None:
        """Start after ``size`` entries."""
        self.lanes, self.lists = best.lanes, (best.values, best.indices)
        self.bases = (base, index_base)
        self.size = vector.array(1, "int32")
        vector.store(self.size, [0], size)

    def all(self, scores: Expr, indices: Expr, chosen: Expr) -> None:
        """Append the chosen lanes, whole vectors."""
        at = T.bind(T.cast(self.size[0], "int64"))
        for values, buffer, base in zip((scores, indices), self.lists, self.bases, strict=True):
            vector.store(buffer, [base + at], self.lanes.compressed(values, chosen))
        vector.store(self.size, [0], self.size[0] + self.lanes.counted(chosen))

    def few(self, scores: Expr, indices: Expr, chosen: Expr) -> None:
        """Append the chosen lanes, halves of vectors where so few are chosen.

        Stores of whole vectors cross a cache line each, which takes longer than all else.
        """
        half = self.lanes.count // 2
        at, count = T.bind(T.cast(self.size[0], "int64")), T.bind(self.lanes.counted(chosen))
        packed = [
            T.bind(self.lanes.compressed(scores, chosen)),
            T.bind(self.lanes.listed(indices, chosen)),
        ]
        for values, buffer, base in zip(packed, self.lists, self.bases, strict=True):
            vector.store(buffer, [base + at], T.Shuffle([values], list(range(half))))
        with T.If(count > half), T.Then():
            for values, buffer, base in zip(packed, self.lists, self.bases, strict=True):
                upper = T.Shuffle([values], list(range(half, 2 * half)))
                vector.store(buffer, [base + at + half], upper)
        vector.store(self.size, [0], self.size[0] + count)

    def some(self, scores: Expr, indices: Expr, least: Expr, spare: Buffer) -> None:
        """Append the lanes above ``least`` and as many of its equals as there is room for."""
        lanes = self.lanes
        chosen, held = vector.array(lanes.count, "int32"), vector.array(lanes.count, "float32")
        vector.store(held, [0], scores)
        with T.serial(lanes.count) as i:
            score = T.bind(held[i])
            tied = T.And(score.equal(least), spare[0] > 0)
            vector.store(chosen, [i], T.Select(T.Or(score > least, tied), T.int32(1), T.int32(0)))
            vector.store(spare, [0], spare[0] - T.Select(tied, T.int32(1), T.int32(0)))
        self.all(scores, indices, chosen.vload([0], lanes.i32) > lanes.each_int(0))
