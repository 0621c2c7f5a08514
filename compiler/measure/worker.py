"""The measuring process: verifies and times built candidates. It knows no compiler.

numpy and ctypes only; threads, affinity and environment are set before the first library loads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from wattune.compiler.measure.amx import allow_amx
from wattune.compiler.measure.cases import Binder
from wattune.compiler.measure.ffi import Library, runtime
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.memory import huge_pages_available
from wattune.compiler.measure.meters import open_meter
from wattune.compiler.measure.pool import Pool
from wattune.compiler.measure.process import Handler, Message, serve
from wattune.compiler.measure.rotation import filler, rotations
from wattune.compiler.measure.timing import Timer, too_slow
from wattune.compiler.measure.verify import verify
from wattune.errors import MeasureError
from wattune.ops import problem_from_json

ENERGY_SECONDS = 0.5


def start() -> None:
    """Run the worker until its parent ends."""
    serve(_prepare)


def _prepare(setup: Message) -> Handler:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup["cpus"])
    if setup["amx"]:
        allow_amx()
    runtime()
    # libtvm_ffi prints a trace of a crash, from inside the crash: it may hang there.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    if setup["threads"] > 1:
        # Kept for good: candidates come and go, and a second copy would find its threads' cores
        # already bound to the first one's places.
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    return Measurer(setup).answer


class Measurer:
    """Answers requests to verify and time a library."""

    def __init__(self, setup: Message) -> None:
        """Take mode, threads, footprint and seed from the set-up message."""
        self._mode = str(setup["mode"])
        self._threads = int(setup["threads"])
        self._cpus = [int(cpu) for cpu in setup["cpus"]]
        self._footprint = int(setup["footprint"])
        self._seed = int(setup["seed"])
        self._binder = Binder(self._seed)
        self._pool = Pool()
        self._position = 0.0
        self._meter = open_meter("cpu")

    def answer(self, request: Message) -> Message:
        """Verify and time; a wrong candidate is an answer with ``failure`` and ``message``.

        A request for ``limits`` is answered with them.
        """
        if "limits" in request:
            # OpenMP has bound this thread to its first place: it may not use the others itself.
            gbps = read_bandwidth_at(self._footprint, self._threads, cpus=self._cpus)
            return {"limits": {"read_gbps": gbps}}
        library = Library(request["library"])
        try:
            library.set_threads(self._threads)
            return self._measure(request, library)
        except MeasureError as error:
            return {"failure": error.kind, "message": str(error)}
        finally:
            library.close()

    def _measure(self, request: Message, library: Library) -> Message:
        problem = problem_from_json(request["problem"])
        pack, sizes = request["pack"], request["sizes"]
        begin = time.perf_counter()
        if request["verify"]:
            bound = verify(self._binder, problem, library, pack, sizes)
        else:
            bound = self._binder.bind(problem, pack, sizes)
        verified = time.perf_counter()
        moved = rotations(
            self._pool,
            problem,
            bound.sizes(),
            self._footprint if self._mode == "cold" else 0,
            filler(problem, lambda: bound.case.values, self._seed),
        )
        timer = Timer(library.address("kernel"), bound.call, moved, self._position)
        best = request["best"]
        samples = timer.measure(request["budget"], self._mode == "cold", best)
        joules = None if too_slow(min(samples), best) else self._energy(timer, samples)
        self._position = timer.position
        return {
            "seconds": samples,
            "joules": joules,
            "energy_source": self._meter.source if self._meter and joules is not None else "none",
            "conditions": {"huge_pages": huge_pages_available(), "clock_mhz": _clock_mhz()},
            "facts": {
                "verify_seconds": verified - begin,
                "timing_seconds": time.perf_counter() - verified,
            },
        }

    def _energy(self, timer: Timer, samples: tuple[float, ...]) -> float | None:
        """Return joules per call over a loop long enough for the counter's resolution."""
        if self._meter is None:
            return None
        calls = max(1, round(ENERGY_SECONDS / float(np.median(samples))))
        before = self._meter.joules()
        timer.run(1, calls)
        return (self._meter.joules() - before) / calls


def _clock_mhz() -> float | None:
    """Return the clock of the core this runs on, where the kernel reports it."""
    try:
        core = next(iter(os.sched_getaffinity(0)))
        file = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        return int(file.read_text()) / 1000
    except (OSError, AttributeError, ValueError):
        return None
