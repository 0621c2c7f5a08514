"""Images for the emulated driver: a mark, a size and a shared object made from CUDA source."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

from tests.emulator.cuda.rewrite import to_host

from wattune.compiler.cc import cache_folder, run
from wattune.errors import BuildError

DEVICE = Path(__file__).with_name("device")
MARK = b"WTEMU\0\0\1"

# The driver answers the sanitisers' calls: what faults on a GPU, or is undefined there.
_CHECKS = "alignment,bounds,signed-integer-overflow,shift-exponent"
_FLAGS = (
    "-std=c++20",
    # Compiling takes longer than running: at -O1 twice as long.
    "-Og",
    "-fPIC",
    "-w",
    "-fno-strict-aliasing",
    f"-fsanitize={_CHECKS}",
    "-fno-sanitize-recover=all",
    "-fstack-clash-protection",
)


@cache
def cpp_compiler() -> str:
    """Return the path of the C++ compiler."""
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("no C++ compiler found; install g++, or set CXX to one")


@cache
def device_digest() -> str:
    """Digest the emulator's own sources and the compiler: what every image depends on."""
    digest = hashlib.sha256(run([cpp_compiler(), "--version"]).encode())
    for path in sorted(DEVICE.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def host_image(source: str) -> bytes:
    """Compile CUDA source for the CPU; compiled once for all processes."""
    text = to_host(source)
    key = hashlib.sha256("\0".join((text, device_digest(), *_FLAGS)).encode()).hexdigest()[:32]
    path = cache_folder() / "cuda-emulator" / f"{key}.image"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unit, made = Path(folder) / "kernels.cc", Path(folder) / "kernels.so"
            unit.write_text(text)
            # Compiled and linked apart: no sanitiser's own library is wanted.
            run([cpp_compiler(), *_FLAGS, "-c", f"-I{DEVICE}", unit, "-o", unit.with_suffix(".o")])
            run([cpp_compiler(), "-shared", unit.with_suffix(".o"), "-o", made])
            data = made.read_bytes()
            beside = Path(folder) / "image"
            beside.write_bytes(MARK + struct.pack("<Q", len(data)) + data)
            # Written beside and moved: two processes may do this at once.
            os.replace(beside, path)
    return path.read_bytes()
