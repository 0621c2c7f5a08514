"""The templates of quantised attention."""

from __future__ import annotations

from typing import Any

from wattune.schedules.cpu.quantized_attention.base import QuantizedAttentionTemplate
from wattune.schedules.cpu.quantized_attention.product import ByteProduct, Product, RealProduct
from wattune.schedules.target import Target


class VnniAttention(QuantizedAttentionTemplate):
    """Products of bytes in registers of 512 bits."""

    name = "quantized_attention_vnni"

    def applies(self, problem: Any, target: Target) -> bool:
        """Need AVX-512 VNNI."""
        return target.has("avx512_vnni", "avx512bw", "avx512vl")

    def product(self, target: Target) -> Product:
        """Return products of bytes."""
        return ByteProduct(16)


class PortableAttention(QuantizedAttentionTemplate):
    """Products in fp32, for every target."""

    name = "quantized_attention_portable"

    def applies(self, problem: Any, target: Target) -> bool:
        """Say yes."""
        return True

    def product(self, target: Target) -> Product:
        """Return fp32 products."""
        return RealProduct(16 if target.has("avx512f") else 8 if target.has("avx2", "fma") else 4)
