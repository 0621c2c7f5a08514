"""Sizes that an attention kernel's schedule decides: folding of heads, tiles, splits, scratch."""

from __future__ import annotations

from dataclasses import dataclass

from wattune.ops.dtypes import itemsize
from wattune.schedules.areas import LINE, Areas
from wattune.schedules.attention import Items

# Vectors of scores that one iteration of the softmax's loops covers.
MOST_VECTORS = 4
# Bytes between the scratch of two threads.
GAP = 8192


@dataclass(frozen=True)
class Fold:
    """How the query rows of a group share vectors of scores: lane = row * keys + key.

    A vector holds the scores of ``keys`` keys for ``slots`` rows, of which the first ``rows`` are
    real ones. Maxima and sums stay in this order, so that all rows are reduced at once.
    """

    rows: int
    lanes: int

    @property
    def slots(self) -> int:
        """Return the rows rounded up to a power of two."""
        return 1 << (self.rows - 1).bit_length()

    @property
    def keys(self) -> int:
        """Return how many keys a vector of scores covers."""
        return self.lanes // self.slots


@dataclass(frozen=True)
class Plan(Items):
    """One schedule of one problem.

    A request's keys are cut into tiles of ``block`` keys and these into at most ``splits`` chunks
    of at least ``split_tiles`` tiles. The rows of an item (all queries that read one list of keys
    of one KV head) are processed ``rows`` at a time, ``unroll`` vectors of scores a step and
    ``columns`` vectors of values a pass; sums go back to memory after every ``stretch`` keys.
    Rows ``prefetch`` keys ahead (0: none) are prefetched into the first or second cache
    (``level``), and the first lines of those ``wake`` keys beyond (0: none). Tiles of listed blocks
    are read as ``streams`` equal parts side by side, a key of each in turn. ``scores`` and
    ``values`` name the arithmetic: ``fma``, ``dot`` or ``amx``, which takes ``least_keys`` at a
    time.
    """

    threads: int
    lanes: int
    block: int
    rows: int
    unroll: int
    columns: int
    splits: int
    split_tiles: int
    prefetch: int
    scores: str
    values: str
    least_keys: int = 1
    stretch: int = 128
    wake: int = 0
    level: int = 1
    streams: int = 1

    @property
    def folds(self) -> tuple[tuple[Fold, int, int], ...]:
        """Return each kind of row group: its fold, its first row, how many there are."""
        whole, rest = divmod(self.item_rows, self.rows)
        found = [(Fold(self.rows, self.lanes), 0, whole)] if whole else []
        if rest:
            found.append((Fold(rest, self.lanes), whole * self.rows, 1))
        return tuple(found)

    @property
    def groups(self) -> int:
        """Return how many row groups there are."""
        return -(-self.item_rows // self.rows)

    def quantum(self, fold: Fold) -> int:
        """Return the vectors of scores of an iteration: tiles are cut short by whole ones."""
        least = self.least_keys // fold.keys
        return min(self.block // fold.keys, max(MOST_VECTORS, self.unroll, least))

    @property
    def size(self) -> int:
        """Return the bytes of an element of the cache."""
        return itemsize(self.problem.dtype)


@dataclass(frozen=True)
class Scratch:
    """The workspace: what all threads share, then ``stride`` bytes for each thread."""

    shared: Areas
    own: Areas
    threads: int

    @classmethod
    def of(cls, plan: Plan, query_bytes: int, total_lanes: int, engine_bytes: int = 0) -> Scratch:
        """Return the workspace of a plan; ``total_lanes``: fp32 sums of one query row.

        ``engine_bytes``: what the engines need beside, for each thread.
        """
        items = plan.problem.batch * plan.problem.kv_heads * plan.items
        parts = items * plan.splits if plan.splits > 1 else 0
        rows, groups = plan.item_rows, plan.groups
        shared = Areas.of(
            sums=4 * parts * rows * total_lanes, totals=8 * parts * rows, counts=4 * items
        )
        own = Areas.of(
            query=rows * query_bytes,
            sums=4 * rows * total_lanes,
            state=8 * groups * plan.lanes,
            totals=8 * rows,
            limits=8 * groups * plan.lanes,
            scores=4 * max(plan.block * fold.slots for fold, _, _ in plan.folds),
            weights=2 * max(plan.block * fold.slots for fold, _, _ in plan.folds),
            factors=4 * plan.lanes,
            table=2 * 8 * plan.block,
            positions=2 * 4 * plan.block,
            engine=engine_bytes,
        )
        return cls(shared, own, plan.threads)

    @property
    def stride(self) -> int:
        """Return the bytes of a thread: an odd number of lines, so that sets differ.

        Prefetchers that follow one thread's stores run on for a page or two: without the gap they
        would take lines from the next thread again and again.
        """
        return ((self.own.bytes + GAP) // LINE | 1) * LINE

    @property
    def bytes(self) -> int:
        """Return all bytes."""
        return self.shared.bytes + self.threads * self.stride


def groups_of(total: int, width: int) -> list[int]:
    """Return where groups of ``width`` columns start; the last one overlaps where it must."""
    starts = list(range(0, total - width + 1, width))
    return starts if total % width == 0 else [*starts, total - width]
