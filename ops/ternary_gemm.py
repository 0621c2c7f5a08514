"""Ternary GEMM: y = dequant(int8(x)) @ W^T with W in {-1, 0, +1}, the matmul of BitNet b1.58."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ProblemError
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import integer, one_of
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Values, Work
from wattune.ops.quantize import quantize_per_token
from wattune.ops.ternary_formats import FORMATS


@dataclass(frozen=True)
class TernaryGemm(Problem):
    """y[tokens, out_features] = x[tokens, in_features] @ W[out_features, in_features]^T.

    ``dtype`` is that of x and y. With ``int8`` x is already quantised: ``out_dtype`` float32 takes
    an ``x_scale`` per token (q = x * x_scale, so y = sum * weight_scale / x_scale), int32 returns
    the sums. ``scale`` says whether W has one scale per ``tensor`` or per ``row``. ``levels`` is
    the number of weight values, 3 for ternary, 5 for {-2..2}. ``format`` fixes how weights become
    bits; empty leaves it to the tuner (all formats are lossless).
    """

    operator: ClassVar[str] = "ternary_gemm"
    runtime: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: int
    out_features: int
    in_features: int
    dtype: str = "float32"
    out_dtype: str = ""
    scale: str = "tensor"
    levels: int = 3
    format: str = ""

    def __post_init__(self) -> None:
        """Check every field and fill the output's dtype."""
        for name in ("tokens", "out_features", "in_features"):
            integer(self, name, 1)
        # An int32 sum of products up to 128 * (levels // 2) must not overflow.
        if self.in_features > 1 << 23:
            raise ProblemError(f"ternary_gemm: in_features is {self.in_features}; allowed: <= 2^23")
        one_of(self, "dtype", (*FLOATS, "int8"))
        if not self.out_dtype:
            default = "int32" if self.dtype == "int8" else self.dtype
            object.__setattr__(self, "out_dtype", default)
        outputs = ("int32", "float32") if self.dtype == "int8" else (self.dtype,)
        one_of(self, "out_dtype", outputs)
        one_of(self, "scale", ("tensor", "row"))
        one_of(self, "levels", (3, 5))
        allowed = [name for name, fmt in FORMATS.items() if fmt.supports(self.levels)]
        if self.format != "":
            one_of(self, "format", allowed)

    @property
    def returns_sums(self) -> bool:
        """Say whether the output is the raw int32 sums, without any scale."""
        return self.out_dtype == "int32"

    def shared_data(self) -> str:
        """Name the weight: one packed copy serves every token bucket and activation dtype."""
        return (
            f"ternary_gemm.weight:{self.out_features}x{self.in_features}"
            f":{self.levels}:{self.format or 'any'}"
        )


class TernaryGemmOperator(Operator[TernaryGemm]):
    """The operator object of `TernaryGemm`."""

    name = "ternary_gemm"
    summary = "y = dequant(int8(x)) @ W^T, W in {-1, 0, +1} (BitNet b1.58)"
    problem = TernaryGemm

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("x", "x_scale", "weight", "weight_scale", "workspace", "y")

    def arguments(self, problem: TernaryGemm) -> tuple[Argument, ...]:
        """Describe every tensor; int32 sums take no scales."""
        n, k = problem.out_features, problem.in_features
        scales = 1 if problem.scale == "tensor" else n
        high = problem.levels // 2
        weights = Argument("weights", (n, k), "int8", "input", values=Values(-high, high))
        scale = Argument("scale", (scales,), "float32", "input")
        found = {
            "x": Argument("x", ("tokens", k), problem.dtype, "input"),
            "weight": Argument("weight", ("weight_bytes",), "uint8", "packed", source=weights),
            "workspace": Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            "y": Argument("y", ("tokens", n), problem.out_dtype, "output"),
        }
        if not problem.returns_sums:
            found["weight_scale"] = Argument(
                "weight_scale", (scales,), "float32", "packed", source=scale
            )
            if problem.dtype == "int8":
                found["x_scale"] = Argument("x_scale", ("tokens",), "float32", "input")
        return tuple(found[name] for name in self.signature if name in found)

    def make_inputs(self, problem: TernaryGemm, rng: np.random.Generator) -> dict[str, Array]:
        """Draw activations, weights and scales."""
        n, k = problem.out_features, problem.in_features
        high = problem.levels // 2
        inputs: dict[str, Array] = {
            "weights": rng.integers(-high, high + 1, (n, k), dtype=np.int8),
        }
        if problem.dtype == "int8":
            inputs["x"] = rng.integers(-128, 128, (problem.tokens, k), dtype=np.int8)
        else:
            x = rng.standard_normal((problem.tokens, k), dtype=np.float32)
            inputs["x"] = round_to(x, problem.dtype)
        if not problem.returns_sums:
            scales = 1 if problem.scale == "tensor" else n
            inputs["scale"] = rng.uniform(0.5, 2.0, scales).astype(np.float32)
            if problem.dtype == "int8":
                inputs["x_scale"] = rng.uniform(10, 50, problem.tokens).astype(np.float32)
        return inputs

    def reference(self, problem: TernaryGemm, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute y: the sums exactly, the scaling in float64, rounded once to y's dtype."""
        if problem.dtype == "int8":
            q, s = inputs["x"], inputs.get("x_scale")
        else:
            q, s = quantize_per_token(inputs["x"])
        sums = exact_sums(q, inputs["weights"])
        if problem.returns_sums:
            return {"y": sums}
        assert s is not None
        scaled = sums * inputs["scale"].astype(np.float64) / s.astype(np.float64)[:, None]
        return {"y": round_to(scaled, problem.out_dtype)}

    def work(self, problem: TernaryGemm) -> Work:
        """Count 2 operations per weight and token; the least bytes are 1.6 bits per weight."""
        weights = problem.out_features * problem.in_features
        bits = (
            FORMATS[problem.format].bits
            if problem.format
            else min(fmt.bits for fmt in FORMATS.values() if fmt.supports(problem.levels))
        )
        x_bytes = itemsize(problem.dtype) * problem.in_features
        y_bytes = itemsize(problem.out_dtype) * problem.out_features
        moved = int(weights * bits / 8) + problem.tokens * (x_bytes + y_bytes)
        return Work(operations=2 * weights * problem.tokens, bytes=moved, integer=True)

    def tolerance(self, problem: TernaryGemm, output: str) -> Tolerance:
        """Sums are exact; scaled outputs differ by the roundings of the scaling."""
        if problem.returns_sums:
            return Tolerance(0.0, 0.0, "integer sums are exact")
        unit = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[problem.out_dtype]
        reason = (
            "the int32 sum is exact; its conversion to float32, the product and the quotient round "
            "once each, the store once more: 3 units of float32 and 2 of the output's dtype"
        )
        # The smallest subnormal of float16, where the relative bound no longer holds.
        atol = 2.0**-24 if problem.out_dtype == "float16" else 1e-30
        return Tolerance(3 * 2.0**-24 + 2 * unit, atol, reason)

    def random_bytes(
        self, problem: TernaryGemm, argument: str, count: int, seed: int
    ) -> NDArray[np.uint8]:
        """Draw bytes that are codes in every format: 2-bit fields of 0..2 (at most 170 < 243)."""
        rng = np.random.default_rng(seed)
        fields = rng.integers(0, 81, count, dtype=np.uint8)
        table = np.array(
            [sum(v // 3**i % 3 << 2 * i for i in range(4)) for v in range(81)], dtype=np.uint8
        )
        return table[fields]

    def formats(self) -> dict[str, float]:
        """Return bits per weight of each format."""
        return {name: fmt.bits for name, fmt in FORMATS.items()}

    def examples(self) -> tuple[TernaryGemm, ...]:
        """Return one token and many, ternary and with five levels."""
        return (
            TernaryGemm(1, 2560, 6912),
            TernaryGemm(128, 2560, 6912),
            TernaryGemm(1, 2560, 6912, levels=5),
        )

    def parse_shape(self, text: str, **fields: Any) -> TernaryGemm:
        """Read ``TOKENSxOUTxIN``."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise ProblemError(
                f"ternary_gemm: shape {text!r}; allowed: TOKENSxOUTxIN, for example 1x2560x6912"
            )
        tokens, out_features, in_features = (int(part) for part in parts)
        return TernaryGemm(tokens, out_features, in_features, **fields)


def exact_sums(q: Array, weights: Array) -> NDArray[np.int32]:
    """Return q @ weights^T in int32.

    float64 holds every integer below 2^53, so the BLAS product of integers is exact and much
    faster than numpy's integer one.
    """
    return (q.astype(np.float64) @ weights.astype(np.float64).T).astype(np.int32)


TERNARY_GEMM = TernaryGemmOperator()
