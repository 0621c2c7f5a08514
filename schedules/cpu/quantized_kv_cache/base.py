"""What templates that write a quantised cache share: nothing is packed ahead, no workspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.ops.kv_cache_quantize import QuantizedCacheProblem
from wattune.ops.quantized_kv_cache import QuantizedKVCache
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.cpu.quantized_kv_cache.packer import Packer
from wattune.schedules.cpu.quantized_kv_cache.rows import Block, flat
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Layout

Expr = Any
Buffer = Any


class CacheTemplate(PlainTemplate):
    """A template of a class of CPUs.

    A subclass names the ``features`` it needs, its widest vector and what the vectors can do, and
    adds ``knobs``, ``body`` and ``counts``.
    """

    features: ClassVar[tuple[str, ...]] = ()
    lanes: ClassVar[tuple[int, ...]] = (4,)
    default_lanes: ClassVar[int] = 4
    packs: ClassVar[bool] = False

    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether the target has the instructions."""
        return target.has(*self.features)

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """The operator's own, which attention reads."""
        return Layout.make(problem.format)

    def packing_knobs(self) -> tuple[Knob, ...]:
        """Return the knobs of a `Packer`."""
        return (
            Knob("lanes", self.lanes, self.default_lanes),
            Knob("together", (4, 8), 8 if self.default_lanes == 16 else 4),
            Knob("unroll", (1, 2, 4), 1),
        )

    def packer(
        self, problem: QuantizedCacheProblem, target: Target, values: Mapping[str, Value]
    ) -> Packer:
        """Return how blocks are packed."""
        return Packer(
            cache=problem.quantized,
            lanes=int(values["lanes"]),
            packs=self.packs,
            halves=target.has("f16c") or target.arch == "aarch64",
            together=int(values["together"]),
            unroll=int(values["unroll"]),
        )


class AVX512(CacheTemplate):
    """Vectors of 512 bits."""

    features = ("avx512f", "avx512bw", "avx512vl", "avx2", "f16c")
    lanes = (8, 16)
    default_lanes = 16
    packs = True


class AVX2(CacheTemplate):
    """Vectors of 256 bits."""

    features = ("avx2", "f16c")
    lanes = (8,)
    default_lanes = 8
    packs = True


class Portable(CacheTemplate):
    """Vectors that LLVM splits or joins as the target has them; no intrinsics."""

    lanes = (4, 8)


@dataclass(frozen=True)
class CacheViews:
    """The arrays of keys ("k") or values ("v") as rows, addressed by request and head."""

    packer: Packer
    which: str
    codes: Buffer
    params: Buffer
    residual: Buffer
    packed_blocks: Expr

    @classmethod
    def of(cls, packer: Packer, tensors: Tensors, which: str) -> CacheViews:
        """View the arrays of a call."""
        return cls(
            packer,
            which,
            flat(tensors[f"{which}_codes"], "uint8"),
            flat(tensors[f"{which}_params"], "uint16"),
            packer.rows.view(tensors[f"{which}_residual"]),
            tensors.sizes["packed_blocks"],
        )

    @property
    def cache(self) -> QuantizedKVCache:
        """Return the geometry."""
        return self.packer.cache

    @property
    def width(self) -> int:
        """Return the elements of a row."""
        return self.cache.width(self.which)

    def residual_at(self, row: Expr) -> Expr:
        """Return the first element of the residual of a row: a request's head."""
        return T.bind(T.cast(row, "int64") * (self.cache.block_tokens * self.width))

    def block(
        self,
        row: Expr,
        block: Expr,
        source: Buffer,
        at: Expr,
        stride: Expr,
        ahead: Expr | None = None,
    ) -> Block:
        """Return a block of a row, whose tokens lie in ``source``; `Block` says ``ahead``."""
        index = T.bind(T.cast(row, "int64") * self.packed_blocks + block)
        groups, two, n = self.cache.params_shape(self.which)
        return Block(
            rows=self.packer.rows,
            source=source,
            at=at,
            stride=stride,
            ahead=ahead,
            codes=self.codes,
            codes_at=T.bind(index * self.cache.block_bytes(self.which)),
            params=self.params,
            params_at=T.bind(index * (groups * two * n)),
        )


def ceildiv(value: Expr, divisor: int) -> Expr:
    """Return the quotient of integers >= 0, rounded up."""
    return T.truncdiv(value + (divisor - 1), divisor)
