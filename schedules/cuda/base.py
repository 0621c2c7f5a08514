"""What CUDA templates share: nothing is packed, tensors lie as the caller has them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, Template

WARP = 32


class CudaTemplate(Template):
    """A template whose `lower` returns a `GpuProgram`; a subclass adds the rest."""

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """No argument is packed; a cache has the caller's layout, which all its operators read."""
        return Layout.make(getattr(problem, "layout", "plain"))

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """No argument is packed."""
        return {}

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """No size is the schedule's; templates with a workspace say its bytes."""
        return {}

    @abstractmethod
    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> GpuProgram:
        """Return the host function and its kernels."""
