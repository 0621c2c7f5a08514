"""What the memory gives to reads of random blocks: ``python benchmarks/random_blocks.py``.

Block-sparse attention reads the rows of a block, block_size * head_dim * 2 bytes in a row, from
anywhere. A plain read loop in one thread, over huge pages, that asks for nothing of the next block,
for all of it, or for the first lines of each of its pages: the best is the bound of such kernels,
below that of reading straight on.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.cc import cached
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.memory import pages
from wattune.schedules.target import Target

RESULTS = Path(__file__).parent / "results"
FOOTPRINT = 1 << 30
BLOCKS = tuple(1 << bits for bits in range(12, 21))
REPEATS = 5
# What is asked for of the next block, in the numbers of random_blocks.c.
PREFETCH = ("nothing", "everything", "pages")


def library() -> ctypes.CDLL:
    """Compile the loop for this machine."""
    source = Path(__file__).with_name("random_blocks.c")
    found = ctypes.CDLL(str(cached(source, ("-O3", "-march=native"), ".so")))
    found.read_blocks.restype = ctypes.c_double
    return found


def bandwidth(memory: Any, size: int, prefetch: int) -> float:
    """Return the best GB/s of reading all blocks of ``size`` bytes in random order."""
    loop, count = library(), FOOTPRINT // size
    order = np.random.default_rng(0).permutation(count).astype(np.int64)
    sink = ctypes.c_uint64()
    seconds = [
        loop.read_blocks(
            ctypes.c_void_p(memory.ctypes.data),
            ctypes.c_void_p(order.ctypes.data),
            ctypes.c_int64(count),
            ctypes.c_int64(size),
            ctypes.c_int(prefetch),
            ctypes.byref(sink),
        )
        for _ in range(REPEATS)
    ]
    return float(FOOTPRINT / min(seconds) / 1e9)


def main() -> None:
    """Measure all sizes, print them and write one dated file."""
    memory = pages(FOOTPRINT, huge=True)
    memory[:] = 1
    straight = read_bandwidth_at(FOOTPRINT, 1)
    rows = []
    for size in BLOCKS:
        found = {name: bandwidth(memory, size, i) for i, name in enumerate(PREFETCH)}
        way, best = max(found.items(), key=lambda item: item[1])
        rows.append({"block_bytes": size, "gbps": best, "of_straight": best / straight, **found})
        fraction = best / straight
        print(f"{size:8d} bytes {best:6.1f} GB/s, {fraction:.2f} of reading straight on ({way})")
    machine = describe_machine(Target.native(threads=1))
    path = results_file(RESULTS, "random_blocks", machine["device"])
    write_rows(path, {"machine": machine, "straight_gbps": straight}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
