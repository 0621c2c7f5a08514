"""The templates of quantised attention on vector registers."""

from __future__ import annotations

from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.schedules.cpu.attention.knobs import lanes_of
from wattune.schedules.cpu.quantized_attention.base import QuantizedAttentionTemplate
from wattune.schedules.cpu.quantized_attention.product import (
    ByteProduct,
    PairProduct,
    Product,
    RealProduct,
    WordProduct,
)
from wattune.schedules.target import Target

_AVX512 = ("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_AVX2 = ("avx2", "f16c", "fma")


class VnniAttention(QuantizedAttentionTemplate):
    """Products of bytes in registers of 512 bits."""

    name = "quantized_attention_vnni"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Need AVX-512 with byte products."""
        return target.has(*_AVX512)

    def product(self, problem: QuantizedDecodeAttention, target: Target) -> Product:
        """Return products of bytes."""
        return ByteProduct(16)


class Avx2Attention(QuantizedAttentionTemplate):
    """Products in registers of 256 bits: of bytes with AVX-VNNI, of 16-bit integers with AVX2."""

    name = "quantized_attention_avx2"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Need no wider registers, or codes for which these have no products of integers."""
        if target.has("avx512f") and problem.format == "int8" and not target.has("avx_vnni"):
            return False
        return target.has(*_AVX2) and not target.has(*_AVX512)

    def product(self, problem: QuantizedDecodeAttention, target: Target) -> Product:
        """Return products of bytes, or of 16-bit integers; those of pairs where all is wider."""
        if target.has("avx_vnni"):
            return ByteProduct(8)
        return PairProduct(8) if target.has("avx512f") else WordProduct(8)


class PortableAttention(QuantizedAttentionTemplate):
    """Products in fp32, for every target."""

    name = "quantized_attention_portable"

    def applies(self, problem: QuantizedDecodeAttention, target: Target) -> bool:
        """Say yes."""
        return True

    def product(self, problem: QuantizedDecodeAttention, target: Target) -> Product:
        """Return products of fp32."""
        return RealProduct(lanes_of(problem, target))
