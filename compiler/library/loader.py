"""Load exported libraries: needs numpy and tvm-ffi, not TVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import tvm_ffi

from wattune.compiler.library.elf import check_library_file
from wattune.compiler.library.entry import Entry, LayoutError
from wattune.compiler.library.frameworks import torch_module
from wattune.compiler.library.manifest import CHECKS, Manifest, OperatorTable
from wattune.compiler.library.matching import Part
from wattune.errors import (
    ArgumentError,
    DeviceError,
    LibraryError,
    TargetError,
    UnknownNameError,
)

# What libraries call their errors -> what Python raises.
for _kind in (ArgumentError, DeviceError, LayoutError, TargetError):
    tvm_ffi.register_error(_kind.__name__, _kind)


@dataclass(frozen=True)
class Opened:
    """A library that is open: its manifest and functions."""

    path: str
    manifest: Manifest
    module: Any

    def missing(self) -> str:
        """Say what this machine lacks to run the kernels: CPU features, a driver, a GPU.

        Empty where they run. A library for GPUs opens the driver to find out.
        """
        return str(self.module["missing_features"]())


def load(
    path: str | PathLike[str] | Sequence[str | PathLike[str]], skip_checks: Sequence[str] = ()
) -> Kernels:
    """Open one exported library, or several that serve different targets or sizes.

    Of a list, libraries that this machine cannot run are left out; the first of the others that
    covers a call, on the device of its tensors, serves it. ``skip_checks`` names checks of values
    that calls leave out for speed: "ranges", "duplicates"; it holds for all users of a file in this
    process, until the next `load` of it. Lengths that choose the kernel are always checked, on
    CPUs. Raises `LibraryError` for a file that is missing, no wattune library, of another ABI
    version, or where no library runs on this machine.
    """
    paths = [path] if isinstance(path, str | PathLike) else list(path)
    if not paths:
        raise LibraryError("load needs at least one library")
    mask = _mask(skip_checks)
    opened = [_open(fspath(item)) for item in paths]
    missing = [library.missing() for library in opened]
    usable = [library for library, lacks in zip(opened, missing, strict=True) if not lacks]
    if not usable:
        reasons = "; ".join(
            f"{library.path} needs {lacks}" for library, lacks in zip(opened, missing, strict=True)
        )
        raise LibraryError(
            f"this machine cannot run the kernels: {reasons}; compile for this machine's target, "
            "or give load() a list with a library for 'cpu:generic'"
        )
    for library in usable:
        library.module["skip_checks"](mask)
    return Kernels(usable)


def _mask(names: Sequence[str]) -> int:
    """Return checks as bits."""
    given = [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in CHECKS:
            raise UnknownNameError("check", name, CHECKS)
    return sum(1 << CHECKS.index(name) for name in set(given))


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Return what a library holds, also where this machine cannot run its kernels."""
    return _open(fspath(path)).manifest


class Kernels:
    """The operators of loaded libraries as attributes: ``kernels.ternary_gemm``."""

    def __init__(self, libraries: Sequence[Opened]) -> None:
        """Hold open libraries; offer their operators to torch where torch is in use."""
        self._libraries = tuple(libraries)
        self._entries: dict[str, Entry] = {}
        for name in dict.fromkeys(op.name for o in libraries for op in o.manifest.operators):
            self._entries[name] = Entry(
                [
                    Part(o.path, o.manifest, table, _functions(o.module, table))
                    for o in libraries
                    for table in o.manifest.operators
                    if table.name == name
                ]
            )
        if torch_module() is not None:
            self.register_torch()

    def __getattr__(self, name: str) -> Entry:
        """Return the entry of an operator."""
        try:
            return self.__dict__["_entries"][name]  # type: ignore[no-any-return]
        except KeyError:
            have = ", ".join(self.__dict__.get("_entries", ())) or "none"
            raise AttributeError(
                f"no operator {name!r} in these libraries; they have {have}"
            ) from None

    def __dir__(self) -> list[str]:
        """List the operators too."""
        return sorted([*super().__dir__(), *self._entries])

    @property
    def operators(self) -> tuple[str, ...]:
        """Name the operators."""
        return tuple(self._entries)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Return the manifest of each library by its path."""
        return {library.path: library.manifest for library in self._libraries}

    def set_num_threads(self, threads: int) -> int:
        """Set how many threads kernels use; returns the number, at most the process's cores."""
        return min(int(o.module["set_num_threads"](threads)) for o in self._libraries)

    def register_torch(self) -> None:
        """Make ``torch.ops.wattune.*`` call these libraries, before those registered earlier."""
        from wattune.compiler.library.torch_ops import register

        for entry in self._entries.values():
            register(entry)

    def __repr__(self) -> str:
        """Show paths and entries."""
        paths = ", ".join(library.path for library in self._libraries)
        return "\n".join([f"<wattune kernels of {paths}>", *map(repr, self._entries.values())])


def _open(path: str) -> Opened:
    file = Path(path).resolve()
    if not file.is_file():
        raise LibraryError(f"{path}: no such file; give the .so that Library.export wrote")
    check_library_file(file)
    try:
        module = tvm_ffi.load_module(str(file))
    except Exception as error:
        raise LibraryError(
            f"{path} cannot be opened as a library on this machine: {_first_line(error)}"
        ) from error
    try:
        text = module["metadata_json"]()
    except AttributeError as error:
        raise LibraryError(
            f"{path} is not a wattune library: it has no manifest; give the .so that "
            "Library.export wrote"
        ) from error
    return Opened(path, Manifest.from_json(str(text), path), module)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _functions(module: Any, table: OperatorTable) -> dict[str, Any]:
    packs = dict.fromkeys(f"{table.name}_pack_{pack.argument.name}" for pack in table.packs)
    entries = dict.fromkeys([table.name, *(variant.entry for variant in table.variants)])
    return {name: module[name] for name in (*entries, *packs)}
