"""Wattune: compile and tune the kernels that LLM decoding spends its time in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattune import errors, ops
    from wattune.compiler.library import compile, load
    from wattune.compiler.replay import replay
    from wattune.compiler.tuner import tune
    from wattune.ops.ternary_gemm import TernaryGemm
    from wattune.schedules.target import Target

__version__ = "0.1.0"
__all__ = ["Target", "TernaryGemm", "compile", "errors", "load", "ops", "replay", "tune"]

# Public name -> where it lives. Nothing is imported before it is used: a deployment that only
# loads libraries never touches the compiler.
_LAZY = {
    "Target": ("wattune.schedules.target", "Target"),
    "TernaryGemm": ("wattune.ops.ternary_gemm", "TernaryGemm"),
    "compile": ("wattune.compiler.library", "compile"),
    "errors": ("wattune.errors", None),
    "load": ("wattune.compiler.library", "load"),
    "ops": ("wattune.ops", None),
    "replay": ("wattune.compiler.replay", "replay"),
    "tune": ("wattune.compiler.tuner", "tune"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'wattune' has no attribute {name!r}") from None
    found = import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, lazy ones included."""
    return sorted([*globals(), *_LAZY])
