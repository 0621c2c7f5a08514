"""Templates by instruction set: AVX-512, AVX2 and plain vectors, for both operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from wattune.ops.experts import touched
from wattune.schedules.cpu.amx import TILE_ROWS
from wattune.schedules.cpu.grouped_gemm.amx import MOST_SUMS, AmxBf16, AmxEngine, AmxInt4, AmxInt8
from wattune.schedules.cpu.grouped_gemm.avx2 import AVX2, FEW_ROWS, Int4Narrow
from wattune.schedules.cpu.grouped_gemm.base import ExpertTemplate
from wattune.schedules.cpu.grouped_gemm.engines import (
    PLAIN,
    VNNI,
    VNNI_256,
    ByteDot,
    DotBf16,
    FloatBf16,
    Int4,
    Int8,
    half_by_bits,
    half_by_cast,
)
from wattune.schedules.cpu.grouped_gemm.tile import FAR, Engine
from wattune.schedules.target import Target

# With fewer rows of an expert vectors are as fast: memory is not.
FEW = 4
AVX512 = ("avx512f", "avx512bw", "avx512vl")


def _half(target: Target) -> Callable[[Any], Any]:
    return half_by_cast if target.has("f16c") else half_by_bits


def _integer(format: str, dot: ByteDot, target: Target) -> Engine:
    return (Int8 if format == "int8" else Int4)(dot, _half(target))


class Wide(ExpertTemplate):
    """What templates of 512-bit registers share: the layout, so that one copy serves both."""

    def default_groups(self, problem: Any, target: Target) -> int:
        """Return four; two where weights are unpacked beside the packed ones, and for AMX.

        Its tiles of sums are two groups by 32 rows at best; vectors have the speed of memory.
        """
        return 2 if problem.format == "int4" or target.has("amx_tile") else 4

    def default_prefetch(self, problem: Any, target: Target) -> int:
        """Return a way into the second cache on CPUs with AMX, where it has 2 MiB."""
        return FAR if target.has("amx_tile") else self.prefetch


class Avx512(Wide):
    """512-bit vectors: vdpbf16ps where there is it, vpdpbusd for integer weights."""

    registers: ClassVar[int] = 29

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        if not target.has(*AVX512):
            return None
        if problem.format == "bf16":
            return DotBf16() if target.has("avx512_bf16") else FloatBf16()
        return _integer(problem.format, VNNI, target) if target.has("avx512_vnni") else None


class Amx(Wide):
    """Tiles, where experts have several rows."""

    registers: ClassVar[int] = MOST_SUMS
    least_rows: ClassVar[int] = TILE_ROWS
    next_block: ClassVar[tuple[bool, ...]] = (False,)
    fetches_next: ClassVar[bool] = False

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        format, few = problem.format, problem.tokens * problem.top_k < FEW * touched(problem)
        feature = "amx_bf16" if format == "bf16" else "amx_int8"
        if few or not target.has(*AVX512, "amx_tile", feature):
            return None
        engines: dict[str, Callable[[], AmxEngine]] = {
            "bf16": AmxBf16,
            "int8": AmxInt8,
            "int4": lambda: AmxInt4(_half(target)),
        }
        engine = engines[format]()
        whole = all(engine.whole(product) for product in self.products(problem, 1))
        return engine if whole else None

    def default_prefetch(self, problem: Any, target: Target) -> int:
        """Return less for int4: codes are unpacked, so that the first cache has room."""
        del target
        return self.prefetch if problem.format == "int4" else FAR

    def row_blocks(self, tokens: int) -> tuple[int, ...]:
        """Return whole tiles."""
        return (TILE_ROWS, 2 * TILE_ROWS)

    def sums(self, groups: int, row_block: int) -> int:
        """Count the tiles of sums."""
        return groups * row_block // TILE_ROWS


class Avx2(ExpertTemplate):
    """256-bit vectors, for CPUs without wider ones."""

    registers: ClassVar[int] = 7
    prefetch: ClassVar[int] = 2048
    fetches_next: ClassVar[bool] = False

    def default_groups(self, problem: Any, target: Target) -> int:
        """Return one: 16 registers hold the sums of six rows for it, of two for a pair of them."""
        del problem, target
        return 1

    def most_rows(self, problem: Any, target: Target) -> int:
        """Return four where weights are unpacked, and sums kept, in several registers."""
        return 6 if problem.format == "bf16" or target.has("avx_vnni") else 4

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        wide = target.has(*AVX512) and (problem.format == "bf16" or target.has("avx512_vnni"))
        if wide or not target.has("avx2", "fma"):
            return None
        if problem.format == "bf16":
            return FloatBf16(FEW_ROWS)
        dot, half = VNNI_256 if target.has("avx_vnni") else AVX2, _half(target)
        int4 = Int4Narrow if dot is AVX2 else Int4
        return (Int8 if problem.format == "int8" else int4)(dot, half, FEW_ROWS)


class Portable(ExpertTemplate):
    """Vectors of whatever LLVM makes of them, without intrinsics."""

    registers: ClassVar[int] = 7

    def engine(self, problem: Any, target: Target) -> Engine:
        """Return the engine of the format."""
        if problem.format == "bf16":
            return FloatBf16()
        return _integer(problem.format, PLAIN, target)


INSTRUCTIONS: tuple[type[ExpertTemplate], ...] = (Amx, Avx512, Avx2, Portable)


def templates_of(kind: type[Any]) -> tuple[ExpertTemplate, ...]:
    """Return an operator's templates, one for each instruction set, the fastest first."""
    return tuple(_template(kind, instructions) for instructions in INSTRUCTIONS)


def _template(kind: type[Any], instructions: type[Any]) -> ExpertTemplate:
    name = f"{kind.operator}_{instructions.__name__.lower()}"
    make = type(kind.__name__ + instructions.__name__, (kind, instructions), {"name": name})
    template: ExpertTemplate = make()
    return template
