"""The measuring process of a GPU: verifies and times built candidates. It knows no compiler.

The sibling of `worker`: the same requests and answers. What a kernel does to the device ends this
process, and the context with it; whoever supervises it starts another.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from wattune.compiler.measure.cases import Binder, Recent, Tensor, poison, watched, within
from wattune.compiler.measure.ffi import Call, Library, runtime
from wattune.compiler.measure.gpu_device import GpuDevice
from wattune.compiler.measure.gpu_energy import EnergyMeasurer
from wattune.compiler.measure.gpu_limits import LimitsMeter
from wattune.compiler.measure.gpu_timing import GpuTimer
from wattune.compiler.measure.place import DRAWN_BYTES
from wattune.compiler.measure.pool import CACHE_LINE, Pool
from wattune.compiler.measure.process import Handler, Message, serve
from wattune.compiler.measure.rotation import filler, rotations
from wattune.compiler.measure.timing import too_slow
from wattune.compiler.measure.verify import verify
from wattune.errors import DeviceError, MeasureError
from wattune.ops import Problem, operator, problem_from_json
from wattune.ops.dtypes import itemsize
from wattune.ops.operator import Array
from wattune.schedules.nvidia import OUT_OF_MEMORY

# Device memory of inputs that are kept for the next candidate of the same problem.
_KEPT_BYTES = 1 << 30


def start() -> None:
    """Run the worker until its parent ends."""
    serve(_prepare)


def _prepare(setup: Message) -> Handler:
    runtime()
    # libtvm_ffi prints a trace of a crash, from inside the crash: it may hang there.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    try:
        return GpuMeasurer(setup).answer
    except DeviceError as error:
        _leave(error)


def _leave(error: DeviceError) -> NoReturn:
    """End the process at once: its context may be lost, and tidying up could hang."""
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


class GpuMeasurer:
    """Answers requests to verify and time a library on one GPU."""

    def __init__(self, setup: Message) -> None:
        """Take mode, footprint, seed and the most bytes to draw from the set-up message."""
        self._cold = setup["mode"] == "cold"
        self._footprint, self._seed = int(setup["footprint"]), int(setup["seed"])
        self._most_drawn = int(setup["most_drawn"])
        self._device = GpuDevice(int(setup["device"]))
        self._binder = Binder(self._seed, "cuda", self._device)
        self._pool = Pool(self._device)
        self._inputs: Recent[dict[str, Tensor]] = Recent(_KEPT_BYTES)
        self._energy = EnergyMeasurer(self._device)

    def answer(self, request: Message) -> Message:
        """Verify and time; a wrong candidate is an answer with ``failure`` and ``message``.

        A request for ``limits`` names the image of the kernel that reads, and is answered with
        them.
        """
        if "limits" in request:
            image = Path(request["limits"]).read_bytes()
            return {"limits": LimitsMeter(self._device, image).limits()}
        library = Library(request["library"])
        try:
            return self._measure(request, library)
        except MeasureError as error:
            # A launch that failed may have left the device unusable: this raises then.
            self._check_device()
            return {"failure": error.kind, "message": str(error)}
        except DeviceError as error:
            if error.status != OUT_OF_MEMORY:
                _leave(error)
            self._pool = Pool(self._device)
            return {"failure": "crash", "message": str(error)}
        finally:
            library.close()

    def _check_device(self) -> None:
        try:
            self._device.finish()
        except DeviceError as error:
            _leave(error)

    def _measure(self, request: Message, library: Library) -> Message:
        problem = problem_from_json(request["problem"])
        begin = time.perf_counter()
        facts: dict[str, float] = {}
        if request["verify"]:
            # Caches of gigabytes would take minutes to draw and to compute a reference of.
            fitting = within(problem, self._most_drawn)
            with self._device.current():
                verify(self._binder, fitting, library, request["pack"], request["sizes"])
            facts = {f"verified_{name}": float(size) for name, size in fitting.sizes.items()}
        verified = time.perf_counter()
        timer, kept = self._timer(problem, request["sizes"], library)
        samples = timer.measure(request["budget"], request["best"])
        timed = time.perf_counter()
        energy = None
        if request["energy"] and not too_slow(min(samples), request["best"]):
            energy = self._energy.measure(timer, min(samples))
        del kept
        return {
            "seconds": samples,
            "joules": energy.joules if energy else None,
            "energy_source": "nvml" if energy and energy.joules is not None else "none",
            "message": energy.message if energy else "",
            "conditions": {"huge_pages": False, **self._energy.conditions()},
            "facts": {
                **facts,
                **(energy.facts if energy else {}),
                "graph_calls": float(timer.calls),
                "verify_seconds": verified - begin,
                "timing_seconds": timed - verified,
            },
        }

    def _timer(
        self, problem: Problem, sizes: Mapping[str, int], library: Library
    ) -> tuple[GpuTimer, list[Tensor]]:
        """Lay out a call at the upper end of the bucket, and what keeps its memory."""
        known, inputs = {**problem.extents, **sizes}, self._drawn(problem)
        described, kept, nbytes = [], [], {}
        for argument in operator(problem.operator).arguments(problem):
            shape = argument.concrete(known)
            size = itemsize(argument.dtype) * int(np.prod(shape, dtype=np.int64))
            nbytes[argument.name] = size
            address = 0
            if argument.role == "input":
                tensor = inputs[argument.name]
                kept.append(tensor)
                address = tensor.memory.address
            elif argument.role in ("output", "workspace"):
                tensor = Tensor(self._device.watched(size, True, CACHE_LINE))
                tensor.fill(poison(argument.dtype, size))
                kept.append(tensor)
                address = tensor.memory.address
            described.append((address, argument.dtype, shape))
        moved = rotations(
            self._pool,
            problem,
            nbytes,
            self._footprint if self._cold else 0,
            filler(problem, lambda: self._small(problem), self._seed),
        )
        return GpuTimer(self._device, library, Call(described), moved), kept

    def _small(self, problem: Problem) -> dict[str, Array]:
        """Draw states of a small case: a region holds them again and again."""
        small = within(problem, DRAWN_BYTES)
        return operator(problem.operator).make_inputs(small, np.random.default_rng(self._seed))

    def _drawn(self, problem: Problem) -> dict[str, Tensor]:
        """Return the inputs of a problem, on the device."""

        def make() -> tuple[dict[str, Tensor], int]:
            rng = np.random.default_rng(self._seed)
            drawn = operator(problem.operator).timing_inputs(problem, rng)
            found = {name: watched(array, place=self._device) for name, array in drawn.items()}
            return found, sum(array.nbytes for array in drawn.values())

        return self._inputs.get(problem.key, make)
