"""The second kernel of `select_union`: one list of all heads' ranked tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.select_union import SelectUnion
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, Place, for_each, view
from wattune.schedules.cuda.selection.bitonic import Area, network_size, sort
from wattune.schedules.cuda.selection.listing import votes
from wattune.schedules.program import Tensors

_WORD = 4
_EMPTY = -1
_LATE = 0x7FFFFFFF
# Spreads neighbouring tokens over the table: 2^32 over the golden ratio.
_SPREAD = 0x9E3779B1


@dataclass(frozen=True)
class Unite:
    """Emits the kernel; tables and lists are ``inside`` shared memory, or in the workspace.

    There they begin at byte ``start``: for each union, tokens of the table, their first places,
    the list.
    """

    problem: SelectUnion
    threads: int
    inside: bool
    start: int

    @property
    def table(self) -> int:
        """Return the entries of a table, twice as many as there can be tokens."""
        return network_size(2 * (self.problem.middle + self.threads))

    @property
    def list(self) -> int:
        """Return the tokens that are sorted."""
        return network_size(self.problem.middle)

    @property
    def _words(self) -> int:
        return 2 * self.table + self.list

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory."""
        return _WORD * ((self._words if self.inside else 0) + self.threads // WARP)

    @property
    def bytes(self) -> int:
        """Return the bytes of the workspace."""
        lists = self.problem.batch * self.problem.unions
        return self.start + (0 if self.inside else lists * self._words * _WORD)

    @property
    def moved(self) -> int:
        """Return the bytes that clearing a table and sorting a list moves."""
        stages = self.list.bit_length() - 1
        return 8 * self.table + 2 * _WORD * self.list * stages * (stages + 1) // 2

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return a thread block for each request and union."""
        return sizes["batch"] * self.problem.unions

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Write one list."""
        problem, thread = self.problem, place.thread
        request = T.bind(T.truncdiv(place.block, problem.unions))
        length = T.bind(tensors["seq_lens"][request])
        indices = tensors["token_indices"]
        row = T.bind(T.cast(place.block, "int64") * problem.token_budget)
        if problem.middle:
            tokens, places, chosen = self._areas(tensors, place)
        with T.If(length <= problem.token_budget):
            with T.Then():

                def keep(at: Expr) -> None:
                    ptx.put(indices, row + at, T.Select(at < length, at, T.int32(-1)))

                for_each(thread, self.threads, problem.token_budget, keep)
            with T.Else():
                if problem.middle:
                    head = place.block * problem.group
                    if problem.unions == 1:
                        head = request * problem.query_heads
                    self._unite(tensors, (tokens, places, chosen), T.bind(head), thread)
                self._write(indices, row, chosen if problem.middle else None, length, thread)
        with T.If(thread == 0), T.Then():
            count = T.min(length, problem.token_budget)
            ptx.put(tensors["token_counts"], T.cast(place.block, "int64"), count)

    def _areas(self, tensors: Tensors, place: Place) -> tuple[Area, Area, Area]:
        """Return where a thread block's table and list are."""
        sizes = (self.table, self.table, self.list)
        if self.inside:
            shared = [T.alloc_shared((size,), "int32") for size in sizes]
            return Area(shared[0], 0), Area(shared[1], 0), Area(shared[2], 0)
        words = view(tensors["workspace"], "int32")
        first = T.cast(place.block, "int64") * self._words + self.start // _WORD
        starts = (first, first + self.table, first + 2 * self.table)
        return (
            Area(words, T.bind(starts[0])),
            Area(words, T.bind(starts[1])),
            Area(words, T.bind(starts[2])),
        )

    def _unite(
        self, tensors: Tensors, areas: tuple[Area, Area, Area], head: Expr, thread: Expr
    ) -> None:
        """Take tokens rank by rank, from ``head`` of all requests' on, and sort them."""
        problem = self.problem
        tokens, places, chosen = areas
        for_each(thread, self.threads, self.table, lambda at: tokens.put(at, T.int32(_EMPTY)))
        for_each(thread, self.threads, self.table, lambda at: places.put(at, T.int32(_LATE)))
        for_each(thread, self.threads, self.list, lambda at: chosen.put(at, T.int32(_LATE)))
        ranked = view(tensors["workspace"], "int32")
        sums = T.alloc_shared((self.threads // WARP,), "int32")
        state = ptx.registers(2, "int32")
        taken = ptx.registers(1, "int32")
        ptx.put(taken, 0, T.int32(0))
        count = problem.middle * problem.group
        with T.serial(-(-count // self.threads)) as turn:
            ptx.block_barrier()
            with T.If(taken[0] < problem.middle), T.Then():
                at = T.bind(turn * self.threads + thread)
                rank = T.truncdiv(at, problem.group)
                line = T.cast(head + at - rank * problem.group, "int64")
                with T.If(at < count), T.Then():
                    ptx.put(state, 0, ranked[line * problem.middle + rank])
                    self._insert(tokens, state)
                    space = "shared" if self.inside else "global"
                    ptx.lower(places.pointer(state[1]), at, space)
                ptx.block_barrier()
                self._take(areas, state, sums, taken, T.bind(at), count, thread)
        sort(chosen, self.list, thread, self.threads)

    def _insert(self, tokens: Area, state: Buffer) -> None:
        """Find the entry of token state[0], or make one; state[1] is its number."""
        hashed = T.cast(state[0], "uint32") * T.uint32(_SPREAD)
        top = T.shift_right(hashed, T.uint32(32 - (self.table.bit_length() - 1)))
        ptx.put(state, 1, T.cast(top, "int32"))
        searching = ptx.registers(1, "int32")
        ptx.put(searching, 0, T.int32(1))
        with T.While(searching[0] == 1):
            entry = tokens.pointer(state[1])
            before = T.bind(ptx.swap_if(entry, T.int32(_EMPTY), state[0]))
            with T.If(T.Or(before == _EMPTY, before == state[0])):
                with T.Then():
                    ptx.put(searching, 0, T.int32(0))
                with T.Else():
                    ptx.put(state, 1, T.bitwise_and(state[1] + 1, self.table - 1))

    def _take(
        self,
        areas: tuple[Area, Area, Area],
        state: Buffer,
        sums: Buffer,
        taken: Buffer,
        at: Expr,
        count: int,
        thread: Expr,
    ) -> None:
        """Append the tokens whose first place is a thread's, in the order of threads."""
        _, places, chosen = areas
        first = ptx.registers(1, "int32")
        ptx.put(first, 0, T.int32(0))
        with T.If(at < count), T.Then():
            ptx.put(first, 0, T.Select(places[state[1]] == at, T.int32(1), T.int32(0)))
        mine = votes(first[0] == 1)
        warp, lane = T.truncdiv(thread, WARP), T.truncmod(thread, WARP)
        with T.If(lane == 0), T.Then():
            ptx.put(sums, warp, ptx.ones(mine))
        ptx.block_barrier()
        before = ptx.registers(2, "int32")
        ptx.put(before, 0, taken[0] + ptx.ones(T.bitwise_and(mine, ptx.lanes_below(lane))))
        ptx.put(before, 1, taken[0])
        for other in range(self.threads // WARP):
            with T.If(warp > other), T.Then():
                ptx.put(before, 0, before[0] + sums[other])
            ptx.put(before, 1, before[1] + sums[other])
        with T.If(T.And(first[0] == 1, before[0] < self.problem.middle)), T.Then():
            chosen.put(before[0], state[0])
        ptx.put(taken, 0, before[1])

    def _write(
        self, indices: Buffer, row: Expr, chosen: Area | None, length: Expr, thread: Expr
    ) -> None:
        """Write the first tokens, the chosen ones, the last ones."""
        problem = self.problem
        for_each(thread, self.threads, problem.sinks, lambda at: ptx.put(indices, row + at, at))
        if chosen is not None:

            def copy(at: Expr) -> None:
                ptx.put(indices, row + problem.sinks + at, chosen[at])

            for_each(thread, self.threads, problem.middle, copy)

        def last(at: Expr) -> None:
            place = row + problem.token_budget - problem.recent + at
            ptx.put(indices, place, length - problem.recent + at)

        for_each(thread, self.threads, problem.recent, last)
