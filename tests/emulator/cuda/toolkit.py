"""A CUDA toolkit and driver for whole processes: an nvcc that compiles for the emulated driver.

With `environment` in place, programs that know nothing of the emulator compile, tune and measure
"on a GPU": what they start inherits it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from tests.emulator.cuda import driver

from wattune.compiler.cc import cache_folder

_ROOT = Path(__file__).parents[3]
_NVCC = f"""\
#!{sys.executable}
import sys
sys.path[:0] = {[str(_ROOT / "src"), str(_ROOT)]!r}
from pathlib import Path
if "--version" in sys.argv:
    sys.exit(print("Cuda compilation tools, release 13.0, V0.0.1") or 0)
from tests.emulator.cuda.image import host_image
image = host_image(Path(sys.argv[-1]).read_text())
Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(image)
"""


@cache
def environment() -> dict[str, str]:
    """Return the variables that make the emulator the GPU of a process."""
    folder = cache_folder() / "cuda-emulator" / "toolkit"
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    beside = nvcc.with_name(f".{os.getpid()}-nvcc")
    beside.write_text(_NVCC)
    beside.chmod(0o755)
    os.replace(beside, nvcc)
    return {"CUDA_PATH": str(folder), "LD_LIBRARY_PATH": str(driver.library().parent)}
