"""AVX-512 VNNI templates: decode 2-bit or base-3 weights in registers, multiply with vpdpbusd."""

from __future__ import annotations

from typing import ClassVar

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.decode import Digits, digits_i2, digits_t5
from wattune.schedules.cpu.ternary_gemm.dot import DotTemplate
from wattune.schedules.cpu.ternary_gemm.dot_kernel import Arithmetic
from wattune.schedules.target import Target

AVX512_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
MANY_TOKENS = {"row_groups": 2, "accumulators": 1, "prefetch": 8192}


class Vnni(DotTemplate):
    """What the templates of both formats share."""

    registers = 30
    one_token: ClassVar[dict[str, int]]

    def arithmetic(self, target: Target) -> Arithmetic:
        """Four products of bytes are added to an int32 lane at once."""
        return Arithmetic(vector.LANES, vector.dot_u8s8)

    def defaults(self, problem: TernaryGemm, target: Target) -> dict[str, int]:
        """One token reads memory: long streams. Many share what is decoded, two groups at a time.

        Both ask for memory far ahead: with many tokens a line is needed too seldom for the CPU's
        own prefetching to keep up.
        """
        one = {"k_unroll": 1, "token_block": 8, **self.one_token}
        one["row_groups"] = one["groups"]
        return one if problem.tokens == 1 else {**one, **MANY_TOKENS}


class VnniI2(Vnni):
    """Two bits a weight: mask the fields, no table."""

    name = "vnni_i2"
    format = "i2"
    features = AVX512_VNNI
    one_token: ClassVar[dict[str, int]] = {"groups": 4, "accumulators": 4, "prefetch": 4096}

    def digits(self, accumulators: int, target: Target) -> Digits:
        """Mask the four 2-bit fields."""
        return digits_i2(accumulators)


class VnniT5(Vnni):
    """Five base-3 digits a byte (1.6 bits a weight): four by a table of 81, the fifth by range."""

    name = "vnni_t5"
    format = "t5"
    features = (*AVX512_VNNI, "avx512vbmi")
    one_token: ClassVar[dict[str, int]] = {"groups": 8, "accumulators": 2, "prefetch": 8192}

    def digits(self, accumulators: int, target: Target) -> Digits:
        """Look four digits up; the fifth follows from the range."""
        return digits_t5(accumulators)
