"""What templates that write a quantised cache on a GPU share: knobs, layout, one kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.ops.kv_cache_quantize import QuantizedCacheProblem
from wattune.schedules.cuda.plain import Kernel, Place, PlainTemplate
from wattune.schedules.cuda.quantized_kv_cache.packer import Packer
from wattune.schedules.cuda.quantized_kv_cache.plan import STATIC_SHARED, PackPlan, piece_sizes
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Layout

Expr = Any


@dataclass(frozen=True)
class Part:
    """What a thread block works on: a piece of keys or values (``which``) of a request's head.

    ``row`` is request * heads + head, in 64 bits.
    """

    which: str
    request: Expr
    head: Expr
    row: Expr
    piece: Expr


class WritesCache(PlainTemplate):
    """A template whose thread blocks each take a piece of one head's keys or values."""

    kernel_name: ClassVar[str]

    def applies(self, problem: Any, target: Target) -> bool:
        """Say yes: every dtype and geometry is served."""
        return True

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """The operator's own, which attention reads."""
        return Layout.make(problem.format)

    def space(self, problem: QuantizedCacheProblem, target: Target) -> Space:
        """Knobs: threads of a block, tokens of its piece."""
        sizes = piece_sizes(problem.quantized)
        knobs = (Knob("threads", (64, 128, 256), 128), Knob("tokens", sizes, sizes[0]))
        rule = Constraint(
            f"params of a piece must fit in {STATIC_SHARED} bytes of shared memory",
            lambda v: self.plan(problem, v).shared_bytes <= STATIC_SHARED,
        )
        return Space(self.name, knobs, (rule,))

    def plan(self, problem: QuantizedCacheProblem, values: Mapping[str, Value]) -> PackPlan:
        """Return the schedule."""
        return PackPlan(problem.quantized, int(values["threads"]), int(values["tokens"]))

    @abstractmethod
    def pieces(self, problem: Any, plan: PackPlan, sizes: Mapping[str, Expr]) -> Expr:
        """Return how many pieces of a head there are."""

    @abstractmethod
    def emit(self, problem: Any, packer: Packer, part: Part) -> None:
        """Emit the work of a thread block."""

    def kernels(
        self, problem: QuantizedCacheProblem, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel: a grid of pieces, of heads of keys and values, of requests."""
        plan, heads = self.plan(problem, values), problem.kv_heads

        def blocks(sizes: Mapping[str, Expr]) -> Expr:
            return self.pieces(problem, plan, sizes) * (2 * heads) * sizes["batch"]

        def emit(tensors: Tensors, place: Place) -> None:
            pieces = T.cast(self.pieces(problem, plan, tensors.sizes), "int32")
            packer = Packer.of(plan, tensors, place.thread)
            both = T.bind(T.truncdiv(place.block, pieces))
            piece = T.bind(place.block - both * pieces)
            request = T.bind(T.truncdiv(both, 2 * heads))
            head = T.bind(T.truncmod(both, heads))
            row = T.bind(T.cast(request, "int64") * heads + head)
            with T.If(T.truncmod(both, 2 * heads) < heads):
                with T.Then():
                    self.emit(problem, packer, Part("k", request, head, row, piece))
                with T.Else():
                    self.emit(problem, packer, Part("v", request, head, row, piece))

        return {self.kernel_name: Kernel(plan.threads, blocks, emit, shared=plan.shared_bytes)}
