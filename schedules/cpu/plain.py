"""What templates share that pack nothing: all their tensors lie as the caller has them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from wattune.ops import operator
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, Template


class PlainTemplate(Template):
    """A template without packed arguments; a subclass adds ``space``, ``body`` and ``counts``."""

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """No argument is packed; a cache has the caller's layout, which all its operators read."""
        return Layout.make(getattr(problem, "layout", "plain"))

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """No argument is packed."""
        return {}

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """No size is the schedule's; templates with a workspace say its bytes."""
        return {}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the kernel."""
        sizes = self.sizes(problem, target, values)
        body = self.body(problem, target, values)
        return tensor_program(operator(self.operator).arguments(problem), sizes, body)

    @abstractmethod
    def body(
        self, problem: Any, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""
