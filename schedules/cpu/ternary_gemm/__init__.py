"""CPU templates of ternary GEMM; the first applicable one is the default."""

from __future__ import annotations

from wattune.schedules.cpu.ternary_gemm.amx import AmxI2, AmxT5
from wattune.schedules.cpu.ternary_gemm.avx2 import Avx2I2, Avx2T5
from wattune.schedules.cpu.ternary_gemm.lookup import LookupElut, LookupTL1, LookupTL2
from wattune.schedules.cpu.ternary_gemm.portable import PortableI2, PortableT5
from wattune.schedules.cpu.ternary_gemm.vnni import VnniI2, VnniT5
from wattune.schedules.template import Template

TEMPLATES: tuple[Template, ...] = (
    AmxT5(),
    AmxI2(),
    VnniT5(),
    VnniI2(),
    Avx2I2(),
    Avx2T5(),
    PortableI2(),
    PortableT5(),
    LookupTL2(),
    LookupTL1(),
    LookupElut(),
)
