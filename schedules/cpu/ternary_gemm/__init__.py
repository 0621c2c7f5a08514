"""CPU templates of ternary GEMM; the first applicable one is the default.

Two bits a weight come before 1.6: untuned, ``i2`` is right wherever the weight lies. From memory it
loses the quarter more bytes; ``t5`` from a cache loses half, to decoding (benchmarks/tuning.py).
"""

from __future__ import annotations

from wattune.schedules.cpu.ternary_gemm.amx import AmxI2, AmxT5
from wattune.schedules.cpu.ternary_gemm.avx2 import Avx2I2, Avx2T5
from wattune.schedules.cpu.ternary_gemm.lookup import LookupElut, LookupTL1, LookupTL2
from wattune.schedules.cpu.ternary_gemm.portable import PortableI2, PortableT5
from wattune.schedules.cpu.ternary_gemm.vnni import VnniI2, VnniT5
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    AmxI2(),
    AmxT5(),
    VnniI2(),
    VnniT5(),
    Avx2I2(),
    Avx2T5(),
    PortableI2(),
    PortableT5(),
    LookupTL2(),
    LookupTL1(),
    LookupElut(),
)
