"""Libraries: compile and export kernels, load and call them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattune.compiler.library.entry import Entry
    from wattune.compiler.library.loader import Kernels, load
    from wattune.compiler.library.package import Library, compile
    from wattune.compiler.library.packed import Packed

__all__ = ["Entry", "Kernels", "Library", "Packed", "compile", "load"]

# Loading a library must not import what compiling needs.
_LAZY = {
    "Entry": "entry",
    "Kernels": "loader",
    "Library": "package",
    "Packed": "packed",
    "compile": "package",
    "load": "loader",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'wattune.compiler.library' has no attribute {name!r}")
    value = getattr(import_module(f"wattune.compiler.library.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
