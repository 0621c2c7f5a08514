"""Sizes that a schedule of an attention kernel decides: teams, tiles, rings, splits, scratch."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from wattune.schedules.areas import Areas
from wattune.schedules.attention import Items
from wattune.schedules.cuda.attention.sides import KEYS_LONG, ROWS_LONG, Side
from wattune.schedules.cuda.base import WARP

# Elements that one copy of 16 bytes moves, all caches being of 16 bits.
CHUNK = 8
# Rows and keys of a matrix product: S^T[16 keys, 8 rows], O^T[16 columns, 8 rows].
ROWS = 8
KEYS = 16
# Columns of a slab: rows of 128 bytes, as a warpgroup's products read them.
SLAB = 64
# Bytes of 8 such rows: slabs begin at their multiples, since swizzles are of addresses.
SWIZZLED = 1024
# Floats added to a row of sums in shared memory, so that lanes' stores meet no bank twice.
SUMS_PADDING = 4


@dataclass(frozen=True)
class Shares(Items):
    """How queries and keys are shared out to blocks and warps, however the keys are stored.

    A block works on one split of an item's keys, for ``rows * row_warps`` of its query rows. It
    is ``teams`` of ``row_warps`` warps: a team streams its own keys, and each of its warps
    multiplies them with its own ``rows``. Keys are cut into at most ``splits``, of at least
    ``split_keys``; they are joined by a second ``kernel``, or by the ``last`` block of an item.
    ``blocks``: how many an SM must have room for; 0 is free. ``dependent``: the target can begin
    a kernel before the one before it has ended. Of each 4 exponentials, ``polynomial`` are
    computed by multiplications instead of ex2. ``grid`` blocks share all work, where that is not
    0; otherwise each split of an item has its own.
    """

    teams: int
    row_warps: int
    rows: int
    splits: int
    split_keys: int
    combine: str
    blocks: int
    dependent: bool
    polynomial: int
    grid: int

    @property
    @abstractmethod
    def block_keys(self) -> int:
        """Return the keys that all teams take at once."""

    @property
    @abstractmethod
    def shared(self) -> Areas:
        """Return the shared memory: ``state`` of teams' rows, ``last`` where blocks combine.

        Sums of teams lie where it begins.
        """

    @property
    def listed(self) -> bool:
        """Say whether keys are named by a list."""
        names = ("max_blocks", "max_tokens")
        return any(getattr(self.problem, name, 0) for name in names)

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return WARP * self.teams * self.row_warps

    @property
    def team_threads(self) -> int:
        """Return the threads of a team."""
        return WARP * self.row_warps

    @property
    def block_rows(self) -> int:
        """Return the query rows of a block."""
        return self.rows * self.row_warps

    @property
    def row_tiles(self) -> int:
        """Return how many blocks share the rows of an item."""
        return -(-self.item_rows // self.block_rows)

    @property
    def main_grid(self) -> tuple[int, int, int]:
        """Return the main kernel's blocks in each direction; 0: as many as there are requests."""
        if self.grid:
            return self.grid, 1, 1
        items = self.problem.kv_heads * self.items
        return self.row_tiles * self.splits, items, 0

    @property
    def split_tiles(self) -> int:
        """Return the least tiles of all teams in a split."""
        return max(1, self.split_keys // self.block_keys)

    @property
    def sum_stride(self) -> int:
        """Return the fp32 from one row of a team's sums to the next."""
        return self.problem.value_dim + SUMS_PADDING

    @property
    def sum_bytes(self) -> int:
        """Return the bytes of all teams' sums."""
        return 4 * self.teams * self.block_rows * self.sum_stride

    @property
    def scratch(self) -> Areas:
        """Return the workspace: sums and state of each split of each row, counters of items."""
        problem = self.problem
        items = problem.batch * problem.kv_heads * self.items
        rows = items * self.splits * self.item_rows if self.splits > 1 else 0
        counters = items * self.row_tiles if self.combine == "last" and rows else 0
        return Areas.of(sums=4 * rows * problem.value_dim, state=8 * rows, counters=4 * counters)


@dataclass(frozen=True)
class Plan(Shares):
    """One schedule of one problem with rows of 16-bit floats.

    A team's ring holds ``stages`` tiles of ``keys`` keys. ``copies``: ``async`` (16 bytes a lane)
    or ``bulk`` (rows, by the copy engine). ``shape`` of rows in shared memory: ``pad`` by 16
    bytes, or ``xor`` chunks with the row's number. ``queries`` stay in ``registers`` or are read
    again from ``shared`` memory. ``long_side`` of the products: ``keys``, query ``rows``, or the
    64 rows of a ``warpgroup``, whose four warps multiply as one: then slabs of 64 columns lie one
    after the other.
    ``roles`` of warps: all ``alike``, or one more warp is the ``producer`` that has the copy engine
    fill the rings of all teams, which only multiply.
    """

    keys: int
    stages: int
    copies: str
    shape: str
    queries: str
    long_side: str
    roles: str

    @property
    def producer(self) -> bool:
        """Say whether a warp of its own fills the rings."""
        return self.roles == "producer"

    @property
    def threads(self) -> int:
        """Return the threads of a block, those of a producer behind the teams'."""
        return super().threads + WARP * self.producer

    @property
    def side(self) -> Side:
        """Return which way round the products are."""
        return KEYS_LONG if self.long_side == "keys" else ROWS_LONG

    @property
    def grouped(self) -> bool:
        """Say whether warpgroups multiply, with operands from shared memory."""
        return self.long_side == "warpgroup"

    @property
    def block_keys(self) -> int:
        """Return the keys that all teams take at once."""
        return self.keys * self.teams

    def stride(self, width: int) -> int:
        """Return the elements from one row in shared memory to the next."""
        return width + CHUNK if self.shape == "pad" else width

    @property
    def shared(self) -> Areas:
        """Return the shared memory: rings, queries; sums of teams lie where the rings were."""
        problem = self.problem
        slots = self.teams * self.stages
        rings = {
            "k": 2 * slots * self.keys * self.stride(problem.head_dim),
            "v": 2 * slots * self.keys * self.stride(problem.value_dim),
        }
        if (short := self.sum_bytes - Areas.of(**rings).bytes) > 0:
            rings["more"] = short
        return Areas.of(
            **rings,
            queries=2 * self.block_rows * self.stride(problem.head_dim),
            state=8 * self.teams * self.block_rows,
            positions=4 * slots * self.keys if self.listed else 0,
            barriers=8 * slots * (1 + self.producer) if self.copies == "bulk" else 0,
            last=4 if self.combine == "last" else 0,
        )
