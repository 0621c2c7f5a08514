"""What a bundle takes along beside candidates: the part of the package that measures.

No TVM, no torch, nothing that depends on a release of Python: kernels are called through
libtvm_ffi's C interface, and the little C that measuring needs is compiled already.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import wattune
from wattune.compiler.measure import limits, timing
from wattune.compiler.measure.ffi import runtime_library
from wattune.errors import MissingDependencyError
from wattune.schedules.target import Target

SITE = "site"
# Folders of the package whose modules travel; not those below them.
_FOLDERS = ("", "ops", "schedules", "compiler", "compiler/measure", "compiler/bundle")
# Modules of `compiler` itself that measuring uses; the others need the compiler.
_COMPILER = ("__init__.py", "cc.py", "record_formats.py")
_FFI = "apache-tvm-ffi"

_RUN = '''\
"""Measures this bundle: python run.py --out records.jsonl. manifest.json says what it needs."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if sys.version_info < (3, 11):
    sys.exit(f"Python is {sys.version.split()[0]}; this bundle needs 3.11 or newer")
sys.path.insert(0, str(HERE / "site"))

from wattune.compiler.bundle.run import main  # noqa: E402

sys.exit(main(HERE))
'''


def copy_runner(folder: Path, target: Target) -> None:
    """Write ``run.py`` and the folder it imports from."""
    (folder / "run.py").write_text(_RUN)
    site = folder / SITE
    package = Path(wattune.__file__).parent
    for source in _modules(package):
        copied = site / "wattune" / source.relative_to(package)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copied)
    _copy_ffi(site)
    measure = site / "wattune" / "compiler" / "measure"
    if target.kind == "cpu":
        compiled = {
            timing.HARNESS: timing.harness_library(),
            limits.SOURCE: limits.limits_library(target.features),
        }
        for source, made in compiled.items():
            shutil.copyfile(made, measure / f"{source.name}.so")


def _modules(package: Path) -> Iterator[Path]:
    for name in _FOLDERS:
        for path in sorted((package / name).iterdir()):
            if path.suffix == ".py" and (name != "compiler" or path.name in _COMPILER):
                yield path


def _copy_ffi(site: Path) -> None:
    """Copy libtvm_ffi as a part of its package, found by the package's metadata.

    It is the same file in the wheels for all releases of Python.
    """
    library = runtime_library()
    distribution = metadata.distribution(_FFI)
    found = next((f for f in distribution.files or [] if f.name == library.name), None)
    if found is None:
        raise MissingDependencyError(_FFI, "a bundle")
    copied = site / str(found)
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library, copied)
    info = site / f"{_FFI.replace('-', '_')}-{distribution.version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {_FFI}\nVersion: {distribution.version}\n"
    )
    (info / "RECORD").write_text(f"{found},,\n")
