"""What the memory gives to reads of random blocks: ``python benchmarks/random_blocks.py``.

Block-sparse attention reads the rows of a block, block_size * head_dim * 2 bytes in a row, from
anywhere. A plain read loop over huge pages asks for nothing of the next block, for all of it, or
for the first lines of each of its pages, or reads four blocks side by side: the best is the bound
of such kernels, below that of reading straight on. One row a size of blocks and number of threads,
each of which reads its own share.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.cc import cached
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.memory import pages
from wattune.schedules.target import Target

RESULTS = Path(__file__).parent / "results"
FOOTPRINT = 1 << 30
BLOCKS = tuple(1 << bits for bits in range(12, 18))
REPEATS = 5
# What is asked for of the next block, in the numbers of random_blocks.c.
PREFETCH = ("nothing", "everything", "pages", "four", "four_ahead")


def library() -> ctypes.CDLL:
    """Compile the loop for this machine."""
    source = Path(__file__).with_name("random_blocks.c")
    found = ctypes.CDLL(str(cached(source, ("-O3", "-march=native"), ".so")))
    found.read_blocks.restype = ctypes.c_double
    return found


def bandwidth(memory: Any, size: int, prefetch: int, threads: int) -> float:
    """Return the best GB/s of reading all blocks of ``size`` bytes in random order."""
    loop, count = library(), FOOTPRINT // size
    order = np.random.default_rng(0).permutation(count).astype(np.int64)
    shares = np.split(order, threads)
    start = Barrier(threads)
    cpus, _ = divide(usable_cpus(), threads)

    def read(thread: int) -> float:
        os.sched_setaffinity(0, {cpus[thread]})
        share, sink = shares[thread], ctypes.c_uint64()
        start.wait()
        return float(
            loop.read_blocks(
                ctypes.c_void_p(memory.ctypes.data),
                ctypes.c_void_p(share.ctypes.data),
                ctypes.c_int64(len(share)),
                ctypes.c_int64(size),
                ctypes.c_int(prefetch),
                ctypes.byref(sink),
            )
        )

    with ThreadPoolExecutor(threads) as pool:
        seconds = [max(pool.map(read, range(threads))) for _ in range(REPEATS)]
    return float(FOOTPRINT / min(seconds) / 1e9)


def main() -> None:
    """Measure all sizes, print them and write one dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    options = parser.parse_args()
    memory = pages(FOOTPRINT, huge=True)
    memory[:] = 1
    rows = []
    for threads in map(int, options.threads.split(",")):
        straight = read_bandwidth_at(FOOTPRINT, threads)
        for size in BLOCKS:
            found = {name: bandwidth(memory, size, i, threads) for i, name in enumerate(PREFETCH)}
            way, best = max(found.items(), key=lambda item: item[1])
            of_straight = best / straight
            row = {"block_bytes": size, "threads": threads, "straight_gbps": straight}
            rows.append({**row, "gbps": best, "of_straight": of_straight, **found})
            print(
                f"{threads} threads, {size:8d} bytes {best:6.1f} GB/s,"
                f" {of_straight:.2f} of reading straight on ({way})"
            )
    machine = describe_machine(Target.native(threads=1))
    path = results_file(RESULTS, "random_blocks", machine["device"])
    write_rows(path, {"machine": machine}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
