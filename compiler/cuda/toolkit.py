"""Where CUDA's tools and files are: in CUDA_PATH, on PATH, or in installed packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def tools(name: str, *packages: str) -> Iterator[Path]:
    """Yield the programs of a name: that of CUDA_PATH, the one on PATH, those of packages."""
    root = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME")
    found = [Path(root) / "bin" / name] if root else []
    if on_path := shutil.which(name):
        found.append(Path(on_path))
    yield from (path for path in found if path.is_file())
    for package in packages:
        yield from packaged(package, name)


def packaged(package: str, name: str) -> Iterator[Path]:
    """Yield the files of a name, or a pattern, in an installed package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.match(name) and (path := Path(str(file.locate()))).is_file():
            yield path
