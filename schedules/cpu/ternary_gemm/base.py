"""What all ternary GEMM templates that pack their weight share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from tvm.script import tirx as T

from wattune.ops import operator
from wattune.ops.ternary_formats import FORMATS
from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu.ternary_gemm.layout import VectorLayout
from wattune.schedules.cpu.ternary_gemm.quantize import Quantizer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, Template


class Blob(Protocol):
    """A packed weight's sizes, and the program that packs it."""

    @property
    def bytes(self) -> int:
        """Bytes of the packed weight."""

    @property
    def padded_columns(self) -> int:
        """Columns with padding: what the quantised activations are padded to."""

    def pack_program(self, problem: TernaryGemm) -> Any:
        """Return the PrimFunc (weights int8 [out, in], blob uint8 [bytes])."""


class BlobTemplate(Template):
    """A template that reads its weight, in the format ``format``, as one blob of bytes.

    A subclass adds ``space``, ``layout``, ``weight``, ``body`` and ``counts``.
    """

    operator = "ternary_gemm"
    format: ClassVar[str]
    features: ClassVar[tuple[str, ...]]

    def applies(self, problem: TernaryGemm, target: Target) -> bool:
        """Say whether the format can hold the weights and the target has the instructions."""
        return (
            FORMATS[self.format].supports(problem.levels)
            and problem.format in ("", self.format)
            and target.has(*self.features)
        )

    @abstractmethod
    def weight(self, problem: TernaryGemm, values: Mapping[str, Value]) -> Blob:
        """Return the sizes of the packed weight."""

    def workspace(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Workspace:
        """Return the offsets of the workspace; templates with scratch of their own add it."""
        columns = self.weight(problem, values).padded_columns
        return Workspace.of(problem.tokens, int(values["token_block"]), columns)

    def sizes(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the packed weight and of the workspace."""
        return {
            "weight_bytes": self.weight(problem, values).bytes,
            "workspace_bytes": self.workspace(problem, target, values).bytes,
        }

    def pack(self, problem: TernaryGemm, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return the program that packs the weight."""
        return {"weight": self.weight(problem, values).pack_program(problem)}

    def lower(self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the kernel."""
        sizes = self.sizes(problem, target, values)
        body = self.body(problem, target, values)
        return tensor_program(operator(self.operator).arguments(problem), sizes, body)

    @abstractmethod
    def body(
        self, problem: TernaryGemm, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""


class VectorTemplate(BlobTemplate):
    """A template whose weight is a `VectorLayout` blob in a radix format."""

    def layout(self, problem: TernaryGemm, values: Mapping[str, Value]) -> Layout:
        """The format and how many groups of 16 rows interleave."""
        return Layout.make(self.format, groups=values["groups"])

    def weight(self, problem: TernaryGemm, values: Mapping[str, Value]) -> VectorLayout:
        """Return the sizes of the packed weight."""
        return VectorLayout.of(problem, self.format, int(values["groups"]))


def quantize_tokens(
    problem: TernaryGemm, workspace: Workspace, columns: int, threads: int, tensors: Tensors
) -> None:
    """Emit the first phase: quantise every token, in parallel where there are several."""
    quantizer = Quantizer(problem, workspace, columns)
    loop = T.parallel if threads > 1 and problem.tokens > 1 else T.serial
    with loop(T.cast(tensors.sizes["tokens"], "int32")) as token:
        quantizer.emit(tensors["x"], tensors.get("x_scale"), tensors["workspace"], token)
