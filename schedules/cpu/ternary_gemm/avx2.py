"""AVX2 templates: 64-byte vectors as two registers, products added in int16 (or by vpdpbusd).

vpmaddubsw adds pairs of products to 16-bit lanes. Codes are at most 2, so many vectors' products
fit before vpmaddwd adds the lanes to int32. CPUs with AVX-VNNI multiply and add in one instruction.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.decode import Digits, decode_t5_in_lanes, digits_i2
from wattune.schedules.cpu.ternary_gemm.dot import DotTemplate
from wattune.schedules.cpu.ternary_gemm.dot_kernel import Arithmetic
from wattune.schedules.cpu.ternary_gemm.vnni import AVX512_VNNI
from wattune.schedules.target import Target

LANES = 8
BITS = 256


def _add_pairs(total: Any, codes: Any, q: Any) -> Any:
    return total + vector.dot_pairs_u8s8(codes, q)


def _widen(total: Any, part: Any) -> Any:
    return total + vector.dot_pairs_s16(part, vector.splat(T.int16(1), 2 * LANES))


def _add_quads(total: Any, codes: Any, q: Any) -> Any:
    return vector.dot_u8s8(total, codes, q, BITS)


class Avx2(DotTemplate):
    """What the templates of both formats share."""

    features = ("avx2",)
    # Of 16: with more sums the compiler spills them in the inner loop.
    registers = 12

    def applies(self, problem: TernaryGemm, target: Target) -> bool:
        """Leave CPUs with wider registers to the templates that use them."""
        return super().applies(problem, target) and not target.has(*AVX512_VNNI)

    def arithmetic(self, target: Target) -> Arithmetic:
        """Add in int16, where the CPU cannot add four products to an int32 lane."""
        if target.has("avx_vnni"):
            return Arithmetic(LANES, _add_quads)
        return Arithmetic(LANES, _add_pairs, _widen)

    def accumulators(self, target: Target) -> tuple[int, ...]:
        """Four accumulators leave no register for the decoded digits of several rows."""
        return (1, 2, 4) if target.has("avx_vnni") else (1, 2)

    def defaults(self, problem: TernaryGemm, target: Target) -> dict[str, int]:
        """One token reads memory: two streams of whole lines, prefetched far ahead."""
        common = {"groups": 2, "k_unroll": 1, "token_block": 4}
        if problem.tokens == 1:
            return {**common, "row_groups": 2, "accumulators": 2, "prefetch": 8192}
        return {**common, "row_groups": 1, "accumulators": 1, "prefetch": 8192}


class Avx2I2(Avx2):
    """Two bits a weight: mask the fields, no table."""

    name = "avx2_i2"
    format = "i2"

    def digits(self, accumulators: int, target: Target) -> Digits:
        """Mask the four 2-bit fields."""
        return digits_i2(accumulators)


class Avx2T5(Avx2):
    """Five base-3 digits a byte (1.6 bits a weight): tables of 16 bytes, no byte crosses lanes."""

    name = "avx2_t5"
    format = "t5"

    def digits(self, accumulators: int, target: Target) -> Digits:
        """Look digits up by the remainders modulo 27 and 9."""
        chain = tuple(d % accumulators for d in range(5))
        return Digits(decode_t5_in_lanes, chain, (0,) * accumulators, 19)
