"""A team's ring of tiles of keys and values in shared memory, and the copies that fill it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx, warpgroup
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import CHUNK, SLAB, SWIZZLED, Plan
from wattune.schedules.cuda.kernel import Shared

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Slots:
    """Rows of ``width`` elements in shared memory, ``keys`` of them a slot.

    Matrices are loaded 8 rows at a time, 16 bytes of each: `Plan.shape` puts these in different
    banks. ``rows`` are those of all slots.
    """

    plan: Plan
    buffer: Buffer
    rows: int
    width: int

    @classmethod
    def of(cls, plan: Plan, shared: Shared, name: str, rows: int, width: int) -> Slots:
        """Return the rows of an area."""
        stride, start = plan.stride(width), plan.shared.starts[name]
        assert not plan.grouped or start % SWIZZLED == 0, f"slabs of {name} begin at byte {start}"
        buffer = shared.view(start, rows * stride, "uint16")
        return cls(plan, buffer, rows, width)

    def pointer(self, row: Expr, chunk: Expr, low: Expr) -> Expr:
        """Return the pointer to 8 elements of a row, ``low`` being the row's last three bits."""
        if self.plan.shape == "xor":
            chunk = T.bitwise_xor(chunk, low)
        if self.plan.grouped:
            return self.buffer.ptr_to([self._in_slab(row, chunk)])
        return self.buffer.ptr_to([row * self.plan.stride(self.width) + chunk * CHUNK])

    def _in_slab(self, row: Expr, chunk: Expr) -> Expr:
        """Return where a chunk of a row is when all rows of a slab come before the next slab."""
        chunks = SLAB // CHUNK
        slab = T.truncdiv(chunk, chunks) * self.rows + row
        return slab * SLAB + T.truncmod(chunk, chunks) * CHUNK

    def descriptor(self, row: Expr) -> Expr:
        """Describe the slabs to a warpgroup's products, from a row on, a multiple of 8."""
        return warpgroup.slab_descriptor(self.buffer.ptr_to([row * SLAB]), 2 * self.rows * SLAB)

    def further(self, row: int, chunk: int) -> Expr:
        """Return what is added to the descriptor for rows and chunks further on."""
        chunks = SLAB // CHUNK
        return T.uint32((chunk // chunks * self.rows + row) * chunks + chunk % chunks)


class Ring(ABC):
    """The slots of a block's teams, keys and values; fetched by all threads of a team.

    Or by a producer, which then waits until a team has left a slot.
    """

    def __init__(self, place: Place[Plan], shared: Shared) -> None:
        """Declare the slots and the caches they are filled from."""
        plan, problem = place.plan, place.plan.problem
        self.place, self.plan, self.shared = place, plan, shared
        rows = plan.teams * plan.stages * plan.keys
        self.k = Slots.of(plan, shared, "k", rows, problem.head_dim)
        self.v = Slots.of(plan, shared, "v", rows, problem.value_dim)
        self.caches = {
            "k": place.block.view("k_cache", "uint16"),
            "v": place.block.view("v_cache", "uint16"),
        }

    def row(self, slot: Expr, team: Expr) -> Expr:
        """Return the first row of a slot of a team."""
        return (team * self.plan.stages + slot) * self.plan.keys

    def barrier(self) -> None:
        """Emit the wait for the team's threads."""
        if self.plan.row_warps == 1:
            ptx.warp_barrier()
        else:
            ptx.team_barrier(self.place.team + 1, self.plan.team_threads)

    @abstractmethod
    def begin(self) -> None:
        """Emit what must run before the first fetch."""

    @abstractmethod
    def fetch(self, slot: Expr, team: Expr, row: Expr, some: Expr | None) -> None:
        """Begin to copy the rows that the lanes name (``row``) to a slot of a team.

        None where ``some`` is false.
        """

    @abstractmethod
    def fetched(self) -> None:
        """Emit the end of what belongs to a tile, fetched or not."""

    @abstractmethod
    def wait(self, slot: Expr, parity: Expr) -> None:
        """Wait for a tile; ``parity`` changes each time round the ring."""

    @abstractmethod
    def end(self) -> None:
        """Emit what must run after the last tile."""

    @abstractmethod
    def close(self) -> None:
        """Emit what must run, after a barrier of the block, before its memory is used again."""


class Async(Ring):
    """Copies of 16 bytes a lane: neighbouring lanes copy neighbouring chunks of a row."""

    def begin(self) -> None:
        """Do nothing: groups are counted for each thread."""

    def fetch(self, slot: Expr, team: Expr, row: Expr, some: Expr | None) -> None:
        """Copy keys, then values."""
        base = T.bind(self.row(slot, team))
        if some is None:
            self._copy(base, row)
        else:
            with T.If(some), T.Then():
                self._copy(base, row)

    def _copy(self, base: Expr, row: Expr) -> None:
        for name, slots in (("k", self.k), ("v", self.v)):
            chunks, threads = slots.width // CHUNK, self.plan.team_threads
            total = self.plan.keys * chunks
            for start in range(0, total, threads):
                at = start + self.place.in_team
                if start + threads <= total:
                    self._chunk(name, slots, base, row, at)
                else:
                    # Whole warps: their lanes ask each other for rows.
                    with T.If(at < total), T.Then():
                        self._chunk(name, slots, base, row, at)

    def _chunk(self, name: str, slots: Slots, base: Expr, row: Expr, at: Expr) -> None:
        chunks = slots.width // CHUNK
        key, chunk = T.bind(at // chunks), T.bind(at % chunks)
        source = T.bind(ptx.from_lane(row, key) * slots.width + chunk * CHUNK)
        into = slots.pointer(base + key, chunk, key % 8)
        ptx.copy(into, self.caches[name].ptr_to([source]))

    def fetched(self) -> None:
        """End a group: they are counted, so each tile has one."""
        ptx.copies_end()

    def wait(self, slot: Expr, parity: Expr) -> None:
        """Wait for all groups but those of the tiles behind."""
        ptx.copies_wait(self.plan.stages - 2)
        if self.plan.grouped:
            # Tensor cores read what threads have copied.
            ptx.stores_end()

    def end(self) -> None:
        """Wait for groups that hold nothing."""
        ptx.copies_wait(0)

    def close(self) -> None:
        """Do nothing: nothing is left over."""


class Bulk(Ring):
    """Copies of rows by the copy engine, one lane a key; a barrier a slot counts the bytes.

    With a producer there is a second one a slot, behind those, at which the team's warps arrive
    when they have left it.
    """

    def begin(self) -> None:
        """Set up the barriers."""
        plan = self.plan
        count = plan.teams * plan.stages
        self.slots, self.count = count, count * (1 + plan.producer)
        self.barriers = self.shared.view(plan.shared.starts["barriers"], self.count, "uint64")
        with T.If(self.place.block.thread == 0), T.Then():
            for at in range(self.count):
                arrivals = 1 if at < count else plan.row_warps
                ptx.arrivals_begin(self.barriers.ptr_to([at]), arrivals)
            ptx.arrivals_begun()

    def _barrier(self, slot: Expr, team: Expr) -> Expr:
        return self.barriers.ptr_to([team * self.plan.stages + slot])

    def _left(self, slot: Expr, team: Expr) -> Expr:
        return self.barriers.ptr_to([self.slots + team * self.plan.stages + slot])

    def leave(self, slot: Expr) -> None:
        """Let the producer have a slot: this warp has read all that it needs of it."""
        ptx.warp_barrier()
        with T.If(self.place.lane == 0), T.Then():
            ptx.arrive_alone(self._left(slot, self.place.team))

    def wait_left(self, slot: Expr, team: Expr, parity: Expr) -> None:
        """Wait until all warps of a team have left a slot."""
        ptx.arrivals_wait(self._left(slot, team), parity)

    def fetch(self, slot: Expr, team: Expr, row: Expr, some: Expr | None) -> None:
        """Copy a key's and a value's row by each lane of a team's first warp that has one."""
        keys = self.plan.keys
        size = 2 * keys * (self.k.width + self.v.width)
        count = T.int32(size) if some is None else T.Select(some, T.int32(size), T.int32(0))
        with T.If(self.place.in_team == 0), T.Then():
            ptx.arrive(self._barrier(slot, team), count)
        ptx.warp_barrier()
        wanted = self.place.in_team < keys
        with T.If(wanted if some is None else T.And(wanted, some)), T.Then():
            at = T.bind(self.row(slot, team) + self.place.in_team)
            for name, slots in (("k", self.k), ("v", self.v)):
                source = self.caches[name].ptr_to([row * slots.width])
                into = slots.pointer(at, 0, 0)
                ptx.copy_row(into, source, 2 * slots.width, self._barrier(slot, team))

    def fetched(self) -> None:
        """Do nothing: barriers know their bytes."""

    def wait(self, slot: Expr, parity: Expr) -> None:
        """Wait for the slot's bytes."""
        ptx.arrivals_wait(self._barrier(slot, self.place.team), parity)

    def end(self) -> None:
        """Do nothing: every fetch has been waited for."""

    def close(self) -> None:
        """Take down the barriers, and let the copy engine write where threads have written."""
        ptx.stores_end()
        ptx.block_barrier()
        with T.If(self.place.block.thread == 0), T.Then():
            for at in range(self.count):
                ptx.arrivals_end(self.barriers.ptr_to([at]))


def ring_of(place: Place[Plan], shared: Shared) -> Ring:
    """Return the ring that the schedule asks for."""
    return (Bulk if place.plan.copies == "bulk" else Async)(place, shared)
