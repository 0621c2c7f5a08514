"""The exponential that needs no ex2, on the emulator: its error, and where it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.emulator.cuda.run import launch
from tests.schedules.cuda import HOPPER

from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.schedules.cuda.kernel import Block, gpu_kernel
from wattune.schedules.cuda.program import GpuProgram

THREADS = 128


def powers(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 2^x of a multiple of `THREADS` numbers."""
    prepare_tvm()

    def body(block: Block) -> None:
        from tvm.script import tirx as T

        from wattune.schedules.cuda import ptx

        at = T.bind(T.cast(block.x, "int64") * THREADS + T.cast(block.thread, "int64"))
        value = block.view("x", "float32")[at]
        ptx.put(block.view("y", "float32"), at, ptx.exp2_by_products(value))

    kernel = gpu_kernel("power", {"x": "float32", "y": "float32"}, (), THREADS, body)
    program = GpuProgram(None, {"power": kernel}, {"power": ("x_ptr", "y_ptr")})
    y = np.full_like(x, np.nan)
    arrays: dict[str, Any] = {"x_ptr": x, "y_ptr": y}
    source = device_source(program, HOPPER)
    given = [arrays[name] for name in source.parameters["power"]]
    launch(source.text, "power_kernel", given, len(x) // THREADS, THREADS)
    return y


def test_the_error_of_powers() -> None:
    """Below 4e-6 of the value: a weight's rounding to fp16 makes 2.4e-4. Zero is zero."""
    rng = np.random.default_rng(0)
    x = np.sort(-rng.uniform(0, 126, 6 * THREADS)).astype(np.float32)
    # Where the polynomial is worst, and around its ends.
    x[: 2 * THREADS] = -np.arange(2 * THREADS) / (2 * THREADS)
    exact = np.exp2(x.astype(np.float64))
    np.testing.assert_allclose(powers(x), exact, rtol=4e-6)
    ends = np.full(THREADS, -np.inf, np.float32)
    ends[:8] = (0.0, -0.0, -1.0, -126.0, -127.0, -150.0, -1e38, np.nan)
    found = powers(ends)
    np.testing.assert_array_equal(found[:4], [1.0, 1.0, 0.5, 2.0**-126])
    assert not found[4:].any()
