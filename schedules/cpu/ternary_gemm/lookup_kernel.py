"""What the kernels of look-up templates share: phases, loops over blocks, loads and stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import quantize_tokens
from wattune.schedules.cpu.ternary_gemm.lookup_layout import CHUNK, LookupLayout
from wattune.schedules.cpu.ternary_gemm.lookup_tables import Tables
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Place:
    """Where a kernel works: a row block, its first vector, a token block."""

    block: Expr
    first_vector: Expr
    token_block: Expr


@dataclass(frozen=True)
class LookupKernel(ABC):
    """Emits quantisation, tables and the loops over row blocks; a subclass multiplies."""

    problem: TernaryGemm
    threads: int
    weight: LookupLayout
    workspace: Workspace
    tables: Tables
    row_vectors: int
    k_unroll: int
    prefetch: int
    token_block: int
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Emit the kernel's three phases."""
        columns = self.weight.padded_columns
        quantize_tokens(self.problem, self.workspace, columns, self.threads, tensors)
        loop = T.parallel if self.threads > 1 and self.problem.tokens > 1 else T.serial
        with loop(T.cast(tensors.sizes["tokens"], "int32")) as token:
            self.tables.emit(tensors["workspace"], self.workspace, token)
        parallel = T.parallel if self.threads > 1 else T.serial
        blocks = self.weight.blocks
        count = T.cast(
            (tensors.sizes["tokens"] + self.token_block - 1) // self.token_block, "int32"
        )
        # Tokens outside, so that a task's row blocks share the tables of a token block in L2.
        with (
            parallel(-(-blocks // self.grain)) as task,
            T.serial(count) as at,
            T.serial(self.grain) as inner,
        ):
            block = task * self.grain + inner
            if blocks % self.grain:
                with T.If(block < blocks), T.Then():
                    self._block(tensors, block, at)
            else:
                self._block(tensors, block, at)

    def _block(self, tensors: Tensors, block: Expr, at: Expr) -> None:
        """Multiply one block of rows with one block of tokens."""
        with T.serial(self.weight.vectors // self.row_vectors) as part:
            place = Place(block, part * self.row_vectors, at)
            totals = self._multiply(tensors, place)
            self._store(tensors, place, totals)

    @abstractmethod
    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        """Emit the sums; return what reads those of (token, vector, 16 rows of the vector)."""

    def _store(
        self, tensors: Tensors, place: Place, totals: Callable[[int, int, int], Expr]
    ) -> None:
        storer = Storer(self.problem, self.workspace)
        for t in range(self.token_block):
            token = place.token_block * self.token_block + t
            with T.If(token < tensors.sizes["tokens"]), T.Then():
                for v in range(self.row_vectors):
                    vec = place.block * self.weight.vectors + place.first_vector + v
                    for part in range(self.weight.rows // vector.LANES):
                        storer.emit(
                            totals(t, v, part),
                            tensors["workspace"],
                            tensors.get("weight_scale"),
                            tensors["y"],
                            token,
                            vec * self.weight.rows + part * vector.LANES,
                            offset=False,
                        )

    def _chunks(self, count: int, body: Callable[[Expr], None]) -> None:
        """Emit a loop over chunks, unrolled, and what the unrolling leaves."""
        whole = count // self.k_unroll
        if whole:
            with T.serial(whole) as at:
                for k in range(self.k_unroll):
                    body(at * self.k_unroll + k)
        for k in range(whole * self.k_unroll, count):
            body(T.int32(k))

    def _codes(
        self, tensors: Tensors, place: Place, chunk: Expr, step: int, v: int
    ) -> tuple[Expr, Expr | None]:
        """Load an index vector and, of formats with signs, the chunk's sign vector."""
        blob, width = tensors["weight"], self.weight.width
        vec = place.first_vector + v
        at = self.weight.index_at(place.block, chunk, step, vec)
        if self.prefetch:
            vector.prefetch(blob, at + self.prefetch)
        index = T.bind(vector.load_bytes(blob, at, width))
        if not self.weight.coding.mirror:
            return index, None
        at = self.weight.signs_at(place.block, chunk, vec)
        if self.prefetch and step == 0:
            vector.prefetch(blob, at + self.prefetch)
        return index, vector.load_bytes(blob, at, width)

    def _table(self, place: Place, chunk: Expr, step: int, nibble: int, t: int) -> Expr:
        """Return the offset of the low byte table."""
        return self.workspace.scratch + self.tables.at(
            place.token_block, chunk * CHUNK + step, nibble, t
        )


def nibble_of(index: Expr, nibble: int, lanes: int) -> Expr:
    """Return one half of each byte."""
    half = vector.shift_fields(index, 4, lanes) if nibble else index
    return T.bitwise_and(half, vector.splat_u8(15, lanes))
