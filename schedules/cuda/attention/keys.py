"""Which keys the tiles of a block hold: one lane names one key of its team's tile.

A key that no query sees is never loaded: a row that is seen stands in for it, so that a weight of
0 meets no NaN, and its position hides it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import Place, chunks_of
from wattune.schedules.cuda.attention.plan import Plan
from wattune.schedules.cuda.kernel import Shared

Expr = Any

# A position that no query sees: that of a list's empty places.
HIDDEN = -1


class Keys(ABC):
    """Names the keys of a block's tiles, and then says where they are.

    ``count``: tiles that each team of the block has; ``chunks``: splits that have work.
    """

    count: Expr
    chunks: Expr

    def __init__(self, place: Place[Plan], shared: Shared) -> None:
        """Declare what names the next tile: the row of this lane's key."""
        self.place = place
        self.plan = place.plan
        self.row = ptx.registers(1, "int64")
        self.key = T.bind(place.lane % self.plan.keys)

    @abstractmethod
    def name(self, tile: Expr, team: Expr) -> None:
        """Emit the choice of this lane's key of a team's tile: the next to be fetched."""

    def some(self) -> Expr | None:
        """Return whether the tile to be fetched has a key; None where all have."""
        return None

    @abstractmethod
    def keep(self, slot: Expr, team: Expr) -> None:
        """Emit what `positions` needs of the tile that goes to a slot of a team's ring."""

    @abstractmethod
    def begin(self, tile: Expr, slot: Expr) -> None:
        """Emit what must run before `position` and `any` are asked of a tile."""

    def any(self) -> Expr | None:
        """Return whether the tile in work has a key; None where all have."""
        return None

    @abstractmethod
    def position(self, key: Expr) -> Expr:
        """Return the position of a key of the tile in work."""


class Dense(Keys):
    """All keys that some query sees, cut into splits of neighbouring tiles."""

    def __init__(self, place: Place[Plan], shared: Shared) -> None:
        """Cut them."""
        super().__init__(place, shared)
        tiles, self.chunks = chunks_of(self.plan, place.first, place.end)
        begin = T.bind(tiles * place.split // self.chunks)
        self.count = T.bind(tiles * (place.split + 1) // self.chunks - begin)
        self.start = T.bind(place.first + begin * self.plan.block_keys)

    def _first(self, tile: Expr, team: Expr) -> Expr:
        return self.start + team * self.plan.keys + tile * self.plan.block_keys

    def name(self, tile: Expr, team: Expr) -> None:
        """Take the next positions, the last one again beyond the end."""
        position = T.bind(T.min(self._first(tile, team) + self.key, self.place.end - 1))
        ptx.put(self.row, 0, self.place.cache_row(position))

    def keep(self, slot: Expr, team: Expr) -> None:
        """Keep nothing: a tile's number says where it is."""

    def begin(self, tile: Expr, slot: Expr) -> None:
        """Note the tile."""
        self.now = T.bind(self._first(tile, self.place.team))

    def position(self, key: Expr) -> Expr:
        """Count on from the first."""
        return self.now + key


class Listed(Keys):
    """Keys named by ``block_indices`` or ``token_indices``: slots of a list, in any order.

    Splits take the tiles of a list in turn, so that one which ends early leaves none without
    work, and what a list is filled up with does not change how its keys are cut.
    """

    def __init__(self, place: Place[Plan], shared: Shared) -> None:
        """Find the item's list."""
        super().__init__(place, shared)
        plan, problem, item = self.plan, place.plan.problem, place.item
        self.size = int(getattr(problem, "block_size", 1))
        names = ("block_indices", "token_indices")
        name = next(n for n in names if n in place.block.pointers)
        self.length = place.block.integers["list_length"]
        lists = 1 if getattr(problem, "lists", "head") == "request" else problem.kv_heads
        number = T.cast(item.request, "int64") * plan.items + item.part
        self.list = place.block.view(name, "int32")
        self.base = T.bind((number * lists + (item.head if lists > 1 else 0)) * self.length)
        slots = T.bind(T.cast(self.length, "int32") * self.size)
        tiles = (slots + (plan.block_keys - 1)) // plan.block_keys
        self.slots = slots
        self.count = T.bind(T.max(tiles - place.split + (plan.splits - 1), 0) // plan.splits)
        self.chunks = T.int32(plan.splits)
        areas = plan.shared
        self.positions = shared.view(
            areas.starts["positions"], max(1, plan.teams * plan.stages * plan.keys), "int32"
        )
        self.named = ptx.registers(1, "int32")
        self.lanes = ptx.registers(1, "uint32")

    def _entry(self, slot: Expr) -> Expr:
        """Return the position that a slot names, or `HIDDEN`."""
        found = ptx.registers(1, "int32")
        ptx.put(found, 0, T.int32(HIDDEN))
        with T.If(slot < self.slots), T.Then():
            block = T.bind(self.list[self.base + T.cast(slot // self.size, "int64")])
            position = T.bind(block * self.size + slot % self.size)
            seen = T.And(block >= 0, position < self.place.end)
            if self.plan.problem.window:
                seen = T.And(seen, position >= self.place.first)
            with T.If(seen), T.Then():
                ptx.put(found, 0, position)
        return found[0]

    def name(self, tile: Expr, team: Expr) -> None:
        """Take the next slots; the first key that is seen stands in for those that are not."""
        plan, place = self.plan, self.place
        number = (tile * plan.splits + place.split) * plan.teams + team
        ptx.put(self.named, 0, self._entry(T.bind(number * plan.keys + self.key)))
        ptx.put(self.lanes, 0, ptx.ballot(self.named[0] >= 0))
        with T.If(self.lanes[0] != T.uint32(0)), T.Then():
            seen = ptx.from_lane(self.named[0], ptx.first_lane(self.lanes[0]))
            stand_in = T.bind(seen)
            position = T.Select(self.named[0] < 0, stand_in, self.named[0])
            ptx.put(self.row, 0, place.cache_row(T.bind(position)))

    def some(self) -> Expr:
        """Say whether some lane named a key."""
        return self.lanes[0] != T.uint32(0)

    def _at(self, slot: Expr, team: Expr) -> Expr:
        return (team * self.plan.stages + slot) * self.plan.keys

    def keep(self, slot: Expr, team: Expr) -> None:
        """Keep the positions beside the rows: one warp of the team writes them."""
        place = self.place
        with T.If(place.in_team < self.plan.keys), T.Then():
            ptx.put(self.positions, self._at(slot, team) + self.key, self.named[0])

    def begin(self, tile: Expr, slot: Expr) -> None:
        """Read this lane's position, to know whether there is any."""
        self.at = T.bind(self._at(slot, self.place.team))
        self.found = T.bind(ptx.ballot(self.positions[self.at + self.key] >= 0))

    def any(self) -> Expr:
        """Say whether some key of the tile is seen."""
        return self.found != T.uint32(0)

    def position(self, key: Expr) -> Expr:
        """Read a position."""
        return self.positions[self.at + key]
