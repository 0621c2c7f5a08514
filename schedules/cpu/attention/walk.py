"""The walk of attention kernels over their work, whatever the keys.

    for item, chunk in the thread's share:               # item: a request's KV head
        for tile in the chunk's keys: ...                 # a subclass's part
        out = acc / l, or, of several chunks, (m, l, acc) to the workspace
    merge the chunks of each item, in order

How an item is cut depends on its own keys alone, so results do not depend on the batch, nor on
the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.finish import Finish
from wattune.schedules.cpu.attention.memory import Memory, Region, flat
from wattune.schedules.cpu.attention.overwrite import overwrite
from wattune.schedules.cpu.attention.plan import Plan, Scratch
from wattune.schedules.cpu.attention.values import Values
from wattune.schedules.program import Tensors

Expr = Any


class Counted(Protocol):
    """What names keys in tiles."""

    def prepare(self) -> None:
        """Emit what must run before `tiles`."""

    def tiles(self, item: Item) -> Expr:
        """Return how many tiles an item has."""


class Partial(Protocol):
    """A thread's scratch, as far as the walk knows it: state and sums of an item's rows."""

    @property
    def state(self) -> Region:
        """Maxima and sums of weights, lane by lane."""

    @property
    def totals(self) -> Region:
        """The same, row by row."""

    @property
    def sums(self) -> Region:
        """Weighted sums of values."""


P = TypeVar("P", bound=Partial)


class Walk(ABC, Generic[P]):
    """Emits one kernel; a subclass attends to tiles."""

    memory: Memory
    stream: Counted

    def __init__(self, plan: Plan, scratch: Scratch, values: Values) -> None:
        """Keep the parts; ``values`` says in which order sums lie."""
        self.plan = plan
        self.scratch = scratch
        self.values = values

    @abstractmethod
    def open(self, tensors: Tensors) -> None:
        """Declare views of the tensors and of the workspace (``memory``), make the ``stream``."""

    @abstractmethod
    def own(self, thread: Expr) -> P:
        """Return a thread's scratch."""

    @abstractmethod
    def start(self, own: P, item: Item) -> None:
        """Emit the conversion of an item's queries, zero sums, and the state of no keys."""

    @abstractmethod
    def tiles(self, own: P, item: Item, first: Expr, end: Expr) -> None:
        """Emit the tiles of a chunk, of which there is one at least."""

    def emit(self, tensors: Tensors) -> None:
        """Emit all phases."""
        if "k" in tensors.buffers:
            overwrite(self.plan, tensors)
        self.tensors = tensors
        self.open(tensors)
        self.finish = Finish(self.plan, tensors, self.values)
        self.query = flat(tensors["q"])
        self.batch = T.cast(tensors.sizes["batch"], "int32")
        self.stream.prepare()
        if self.plan.threads > 1:
            with T.parallel(self.plan.threads) as thread:
                self._share(thread)
        else:
            self._share(T.int32(0))
        if self.plan.splits > 1:
            self._merge()

    def _items(self) -> Any:
        """Return the loops over requests, KV heads and lists."""
        return T.grid(self.batch, self.plan.problem.kv_heads, self.plan.items)

    def _item(self, request: Expr, head: Expr, part: Expr) -> Item:
        return Item(request, head, part, T.bind(self.tensors["seq_lens"][request]))

    def _chunks(self, tiles: Expr) -> Expr:
        """Return how many chunks an item of so many tiles is cut into."""
        least = self.plan.split_tiles
        whole = (tiles + (least - 1)) // least
        return T.bind(T.max(T.min(T.int32(self.plan.splits), whole), T.int32(1)))

    def _share(self, thread: Expr) -> None:
        """Emit the walk over all chunks, and the work on those in the thread's share."""
        threads = self.plan.threads
        own = self.own(thread)
        done = Region(vector.array(2, "int64"), 0, "int64")
        done.store(0, T.int64(0))
        done.store(1, T.int64(0))
        if threads > 1:
            with self._items() as (request, head, part):
                tiles = self.stream.tiles(self._item(request, head, part))
                done.store(1, done.load(1) + T.cast(tiles, "int64"))
        with self._items() as (request, head, part):
            item = self._item(request, head, part)
            tiles = T.bind(self.stream.tiles(item))
            chunks = self._chunks(tiles) if self.plan.splits > 1 else T.int32(1)
            with T.serial(chunks) as chunk:
                first, end = self._bounds(tiles, chunks, chunk)
                if threads == 1:
                    self._chunk(own, item, chunks, chunk, first, end)
                else:
                    # The thread in whose share the middle of the chunk lies.
                    middle = 2 * done.load(0) + T.cast(end - first, "int64")
                    all_tiles = T.max(done.load(1), T.int64(1))
                    owner = T.min(middle * threads // (2 * all_tiles), T.int64(threads - 1))
                    with T.If(owner == T.cast(thread, "int64")), T.Then():
                        self._chunk(own, item, chunks, chunk, first, end)
                    done.store(0, done.load(0) + T.cast(end - first, "int64"))

    def _bounds(self, tiles: Expr, chunks: Expr, chunk: Expr) -> tuple[Expr, Expr]:
        """Return the first tile of a chunk, and the one after its last."""
        if self.plan.splits == 1:
            return T.int32(0), tiles
        return T.bind(tiles * chunk // chunks), T.bind(tiles * (chunk + 1) // chunks)

    def _chunk(self, own: P, item: Item, chunks: Expr, chunk: Expr, first: Expr, end: Expr) -> None:
        """Emit the work on one chunk."""
        self.start(own, item)
        with T.If(first < end), T.Then():
            self.tiles(own, item, first, end)
        self.finish.totals(own.state, own.totals)
        if self.plan.splits == 1:
            self.finish.outputs(item, own.sums, own.totals)
            return
        with T.If(chunks == 1):
            with T.Then():
                self.finish.outputs(item, own.sums, own.totals)
            with T.Else():
                kept = self._kept(item, chunk)
                self.finish.keep(own.sums, own.totals, *kept)

    def _kept(self, item: Item, chunk: Expr) -> tuple[Region, Region]:
        """Return where the state of an item's chunk is kept: sums, and maxima and totals."""
        plan = self.plan
        at = T.cast(item.request, "int64") * plan.problem.kv_heads + item.head
        at = T.bind(((at * plan.items + item.part) * plan.splits + chunk) * plan.item_rows)
        sums = self.memory.shared("sums").part(at * self.values.total_lanes)
        return sums, self.memory.shared("totals").part(at * 2)

    def _merge(self) -> None:
        """Emit the merge of items of several chunks, and their outputs."""
        problem = self.plan.problem
        loop = T.parallel if self.plan.threads > 1 else T.serial
        with (
            loop(self.batch * problem.kv_heads) as at,
            T.serial(self.plan.items) as part,
        ):
            item = self._item(at // problem.kv_heads, at % problem.kv_heads, part)
            chunks = self._chunks(self.stream.tiles(item))
            with T.If(chunks > 1), T.Then():
                self.finish.merge(
                    chunks,
                    lambda chunk: self._kept(item, chunk)[0],
                    lambda chunk: self._kept(item, chunk)[1],
                )
                self.finish.outputs(item, *self._kept(item, T.int32(0)))
