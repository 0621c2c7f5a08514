"""Templates by instruction set: AVX-512, AVX2 and plain vectors, for both operators."""

from __future__ import annotations

from typing import Any, ClassVar

from wattune.ops.experts import touched
from wattune.schedules.cpu.amx import TILE_ROWS
from wattune.schedules.cpu.grouped_gemm.amx import MOST_SUMS, AmxBf16, AmxInt8
from wattune.schedules.cpu.grouped_gemm.base import (
    ExpertTemplate,
    FusedMoeTemplate,
    GroupedGemmTemplate,
)
from wattune.schedules.cpu.grouped_gemm.engines import (
    AVX2,
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
from wattune.schedules.cpu.grouped_gemm.tile import Engine
from wattune.schedules.target import Target

# With fewer rows of an expert vectors are as fast: memory is not.
FEW = 4
AVX512 = ("avx512f", "avx512bw", "avx512vl")


def _integer(format: str, dot: ByteDot, target: Target) -> Engine:
    half = half_by_cast if target.has("f16c") else half_by_bits
    return (Int8 if format == "int8" else Int4)(dot, half)


class Avx512(ExpertTemplate):
    """512-bit vectors: vdpbf16ps where there is it, vpdpbusd for integer weights."""

    registers: ClassVar[int] = 29

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        if not target.has(*AVX512):
            return None
        if problem.format == "bf16":
            return DotBf16() if target.has("avx512_bf16") else FloatBf16()
        return _integer(problem.format, VNNI, target) if target.has("avx512_vnni") else None


class Amx(ExpertTemplate):
    """Tiles, where experts have several rows; weights of bf16 and int8."""

    registers: ClassVar[int] = MOST_SUMS

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        kinds = {"bf16": (AmxBf16, "amx_bf16"), "int8": (AmxInt8, "amx_int8")}
        if problem.format not in kinds or problem.tokens * problem.top_k < FEW * touched(problem):
            return None
        make, feature = kinds[problem.format]
        whole = all(make.whole(product) for product in self.products(problem, 1))
        return make() if whole and target.has(*AVX512, "amx_tile", feature) else None

    def row_blocks(self, tokens: int) -> tuple[int, ...]:
        """Return whole tiles."""
        return (TILE_ROWS, 2 * TILE_ROWS)

    def sums(self, groups: int, row_block: int) -> int:
        """Count the tiles of sums."""
        return groups * row_block // TILE_ROWS


class Avx2(ExpertTemplate):
    """256-bit vectors, for CPUs without wider ones."""

    registers: ClassVar[int] = 7

    def engine(self, problem: Any, target: Target) -> Engine | None:
        """Return the engine of the format."""
        wide = target.has(*AVX512) and (problem.format == "bf16" or target.has("avx512_vnni"))
        if wide or not target.has("avx2", "fma"):
            return None
        if problem.format == "bf16":
            return FloatBf16()
        return _integer(problem.format, VNNI_256 if target.has("avx_vnni") else AVX2, target)


class Portable(ExpertTemplate):
    """Vectors of whatever LLVM makes of them, without intrinsics."""

    registers: ClassVar[int] = 7

    def engine(self, problem: Any, target: Target) -> Engine:
        """Return the engine of the format."""
        if problem.format == "bf16":
            return FloatBf16()
        return _integer(problem.format, PLAIN, target)


class GroupedGemmAmx(GroupedGemmTemplate, Amx):
    """One product, AMX."""

    name = "grouped_gemm_amx"


class FusedMoeAmx(FusedMoeTemplate, Amx):
    """The whole layer, AMX."""

    name = "fused_moe_amx"


class GroupedGemmAvx512(GroupedGemmTemplate, Avx512):
    """One product, AVX-512."""

    name = "grouped_gemm_avx512"


class GroupedGemmAvx2(GroupedGemmTemplate, Avx2):
    """One product, AVX2."""

    name = "grouped_gemm_avx2"


class GroupedGemmPortable(GroupedGemmTemplate, Portable):
    """One product, plain vectors."""

    name = "grouped_gemm_portable"


class FusedMoeAvx512(FusedMoeTemplate, Avx512):
    """The whole layer, AVX-512."""

    name = "fused_moe_avx512"


class FusedMoeAvx2(FusedMoeTemplate, Avx2):
    """The whole layer, AVX2."""

    name = "fused_moe_avx2"


class FusedMoePortable(FusedMoeTemplate, Portable):
    """The whole layer, plain vectors."""

    name = "fused_moe_portable"
