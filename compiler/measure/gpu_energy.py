"""Energy of kernels on a GPU: NVML's counter under a graph that is replayed without a pause."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from wattune.compiler.measure.energy_protocol import Calibration, Clock, calibrate, measure
from wattune.compiler.measure.gpu_device import Allocation, Event, GpuDevice, Graph
from wattune.compiler.measure.gpu_timing import GpuTimer
from wattune.compiler.measure.nvml import Nvml
from wattune.errors import DeviceError

# One replay: long enough that handing out work costs little, short enough to follow closely.
REPLAY_SECONDS = 3e-3
_AHEAD = 6
# Candidates between two measurements of the reference load.
REFERENCE_EVERY = 8
_REFERENCE_BYTES, _REFERENCE_COPIES = 256 << 20, 8
_CLOCK = Clock(time.perf_counter, time.sleep)


@dataclass(frozen=True)
class Measured:
    """Joules of one call, or None and the reason."""

    joules: float | None
    message: str = ""
    facts: dict[str, float] = field(default_factory=dict, hash=False)


class Replays:
    """A load for `energy_protocol`: a graph of so many calls, always a few replays ahead."""

    def __init__(self, device: GpuDevice, graph: Graph, calls: int) -> None:
        """Start with nothing handed out."""
        self._device, self._graph, self._calls = device, graph, calls
        self._ended = 0
        self._marks: deque[Event] = deque()

    def advance(self) -> float:
        """Keep the device busy; returns the calls of all replays that have ended."""
        while self._marks and self._marks[0].passed():
            self._marks.popleft()
            self._ended += self._calls
        while len(self._marks) < _AHEAD:
            self._graph.launch()
            mark = Event(self._device)
            mark.record()
            self._marks.append(mark)
        return float(self._ended)


class EnergyMeasurer:
    """Measures calls on one GPU, with a reference load in between that shows its drift."""

    def __init__(self, device: GpuDevice) -> None:
        """Open the counter; without one every measurement says why."""
        self._device = device
        self._counter: Nvml | None = None
        self._missing = ""
        try:
            self._counter = Nvml(device.uuid())
        except DeviceError as error:
            self._missing = str(error)
        self._known: Calibration | None = None
        self._idle = 0.0
        self._reference: list[float] = []
        self._since = 0

    def conditions(self) -> dict[str, float | None]:
        """Return clock and temperature as a record's conditions have them."""
        if self._counter is None:
            return {"clock_mhz": None, "temperature_c": None}
        status = self._counter.status()
        return {"clock_mhz": status.clock or None, "temperature_c": status.temperature or None}

    def measure(self, timer: GpuTimer, seconds: float) -> Measured:
        """Return the energy of a call that takes about so many ``seconds``."""
        if self._counter is None:
            return Measured(None, self._missing)
        try:
            if self._known is None:
                self._calibrate()
            if self._since % REFERENCE_EVERY == 0:
                self._measure_reference()
            self._since += 1
            return self._measured(timer, seconds)
        except DeviceError as error:
            if error.status:
                raise
            return Measured(None, str(error))
        finally:
            self._device.finish()

    def _calibrate(self) -> None:
        assert self._counter is not None
        self._device.finish()
        self._known = calibrate(self._counter, _CLOCK)
        self._idle = self._known.watts

    def _measured(self, timer: GpuTimer, seconds: float) -> Measured:
        assert self._counter is not None
        assert self._known is not None
        graph, calls = timer.for_load(seconds, REPLAY_SECONDS)
        load = Replays(self._device, graph, calls)
        found = measure(self._counter, load, _CLOCK, self._known)
        drift = self._reference[-1] / self._reference[0]
        return Measured(
            found.joules / drift,
            facts={
                "energy_windows": float(found.windows),
                "energy_spread": found.spread,
                "energy_drift": drift,
                "watts": found.watts,
                "idle_watts": self._idle,
                "counter_period": self._known.period,
                "counter_quantum_mj": float(self._known.quantum),
            },
        )

    def _measure_reference(self) -> None:
        """Measure copies within the device, which are the same load every time."""
        assert self._counter is not None
        assert self._known is not None
        size = _REFERENCE_BYTES
        source, target = Allocation(self._device, size), Allocation(self._device, size)

        def copy_all() -> None:
            for _ in range(_REFERENCE_COPIES):
                self._device.copy(target.address, source.address, size)

        load = Replays(self._device, self._device.capture(copy_all), _REFERENCE_COPIES)
        self._reference.append(measure(self._counter, load, _CLOCK, self._known).joules)
        self._device.finish()
