"""Importing TVM: once, with a parser that is fast, and without torch in worker processes."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from wattune.errors import MissingDependencyError

# Modules of TVM that walk the Python stack while they parse a tensor program.
_PARSERS = (
    "tvm.script.parser.core.parser",
    "tvm.script.parser.ir.entry",
    "tvm.tirx.script.builder.ir",
    "tvm.tirx.script.parser.entry",
)


class _FastInspect(ModuleType):
    """The ``inspect`` module, with stack walks that do not read source files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    @staticmethod
    def getouterframes(frame: Any, context: int = 1) -> list[inspect.FrameInfo]:
        """Return the frames from this one outwards, without source lines."""
        found = []
        while frame is not None:
            code = frame.f_code
            info = inspect.FrameInfo(
                frame, code.co_filename, frame.f_lineno, code.co_name, None, None
            )
            found.append(info)
            frame = frame.f_back
        return found

    def stack(self, context: int = 1) -> list[inspect.FrameInfo]:
        """Return the frames of the caller outwards, without source lines."""
        return self.getouterframes(sys._getframe(1))


@cache
def prepare_tvm() -> ModuleType:
    """Import TVM and make its parser fast; call it before templates are lowered.

    TVM's parser reads the source of every frame on the stack for each tensor program: 0.1 s and
    more. It needs the frames only.
    """
    try:
        tvm = import_module("tvm")
    except ImportError as error:
        raise MissingDependencyError("apache-tvm", "compiling") from error
    fast = _FastInspect("inspect")
    for name in _PARSERS:
        module = import_module(name)
        module.__dict__["inspect"] = fast
    return tvm


def keep_torch_out() -> None:
    """Stop tvm-ffi from importing torch: for worker processes, where it costs 200 MB and 2 s."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
