"""Energy by a ticking counter, against a simulated one whose truth is known; NVML's refusals."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from wattune.compiler.measure import energy_protocol, nvml
from wattune.compiler.measure.energy_protocol import Clock, Sample, Status
from wattune.errors import DeviceError

CALL = 23e-6
GRAPH_CALLS = 100


@dataclass
class Device:
    """A GPU of a power in watts, whose counter ticks and whose graphs end all at once.

    Each poll takes a time that varies by ``noise``. The temperature rises towards its last value.
    """

    watts: Callable[[float], float]
    period: float = 0.1
    quantum: int = 1
    noise: float = 0.2
    degrees: float = 0.0
    throttles: Callable[[float], int] = lambda time: 0
    seed: int = 0
    now: float = 0.0317
    polls: int = 0
    busy: float | None = None
    _joules: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def sleep(self, seconds: float) -> None:
        self.now += seconds * (1 + self.noise * self.rng.exponential())
        self.polls += 1

    def energy(self, time: float) -> float:
        """Integrate the power up to a time, by milliseconds."""
        while len(self._joules) <= round(time / 1e-3):
            self._joules.append(self._joules[-1] + 1e-3 * self.watts(len(self._joules) * 1e-3))
        return self._joules[round(time / 1e-3)]

    def millijoules(self) -> int:
        tick = self.period * (self.now // self.period)
        return self.quantum * int(1e3 * self.energy(tick) // self.quantum)

    def status(self) -> Status:
        heat = self.degrees * (1 - np.exp(-self.now / 2))
        return Status(50 + heat, 1980.0, self.throttles(self.now))

    def advance(self) -> float:
        if self.busy is None:
            self.busy = self.now
        return GRAPH_CALLS * ((self.now - self.busy) // (GRAPH_CALLS * CALL))

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


def steady(watts: float) -> Callable[[float], float]:
    return lambda time: watts


@pytest.mark.parametrize("period", [0.02, 0.1])
@pytest.mark.parametrize("quantum", [1, 100, 1000])
@pytest.mark.parametrize("watts", [95.0, 640.0])
def test_joules_of_a_call_are_right_to_a_percent(period: float, quantum: int, watts: float) -> None:
    device = Device(steady(watts), period, quantum)
    known = energy_protocol.calibrate(device, device.clock)
    found = energy_protocol.measure(device, device, device.clock, known)
    assert found.joules == pytest.approx(watts * CALL, rel=0.01)
    assert found.watts == pytest.approx(watts, rel=0.01)
    assert found.windows == 2


def test_windows_between_any_two_moments_would_not_be() -> None:
    """What the alignment is for: the same readings, a second long, cut at any poll."""
    device = Device(steady(300.0))
    run = energy_protocol.Polling(device, device, device.clock)
    worst = 0.0
    for _ in range(20):
        samples = run.during(1.0 + 0.0137)
        joules = 1e-3 * (samples[-1].millijoules - samples[0].millijoules)
        seconds = samples[-1].time - samples[0].time
        worst = max(worst, abs(joules / seconds / 300.0 - 1))
    assert worst > 0.03


def test_the_calibration_finds_period_quantum_and_idle_power() -> None:
    for period, quantum in ((0.02, 7), (0.1, 1000)):
        device = Device(steady(76.0), period, quantum)
        known = energy_protocol.calibrate(device, device.clock)
        assert known.period == pytest.approx(period, rel=0.03)
        assert known.quantum % quantum == 0
        assert known.watts == pytest.approx(76.0, rel=0.02)
        assert known.window == pytest.approx(max(1.0, 20 * period), rel=0.03)


def test_power_that_varies_within_a_window_is_averaged() -> None:
    device = Device(lambda time: 400.0 + 60.0 * np.sin(2 * np.pi * 37 * time))
    known = energy_protocol.calibrate(device, device.clock)
    found = energy_protocol.measure(device, device, device.clock, known)
    assert found.joules == pytest.approx(400.0 * CALL, rel=0.01)


def test_a_drifting_power_takes_a_third_window_and_says_how_far_they_spread() -> None:
    device = Device(lambda time: 300.0 * 1.03 ** (time / 2))
    known = energy_protocol.calibrate(device, device.clock)
    found = energy_protocol.measure(device, device, device.clock, known)
    assert found.windows == 3
    assert found.spread > 0.02


def test_warming_goes_on_until_the_temperature_is_steady() -> None:
    cold, hot = Device(steady(300.0)), Device(steady(300.0), degrees=20.0)
    for device in (cold, hot):
        energy_protocol.Polling(device, device, device.clock).warm()
    assert 3.0 <= cold.now < 3.5
    assert 6.0 <= hot.now < 10.0


def test_windows_in_which_throttling_begins_or_ends_do_not_count() -> None:
    """Warm for 3 s; throttled from the first window's middle on: its power is another."""
    device = Device(
        lambda time: 500.0 if time < 6.5 else 350.0, throttles=lambda time: int(time > 6.5)
    )
    known = energy_protocol.calibrate(device, device.clock)
    found = energy_protocol.measure(device, device, device.clock, known)
    assert found.joules == pytest.approx(350.0 * CALL, rel=0.01)
    assert found.windows == 2
    flicker = Device(steady(300.0), throttles=lambda time: int(time * 1e4) % 7)
    with pytest.raises(DeviceError, match="throttled anew in every window"):
        energy_protocol.measure(flicker, flicker, flicker.clock, known)


def test_a_counter_that_stands_still_is_none() -> None:
    dead = Device(steady(0.0))
    with pytest.raises(DeviceError, match="ticked 0 times"):
        energy_protocol.calibrate(dead, dead.clock)
    known = energy_protocol.calibration([Sample(0.1 * i, 10 * (i // 2), 0.0) for i in range(20)])
    with pytest.raises(DeviceError, match="did not tick for 3 s"):
        energy_protocol.measure(dead, dead, dead.clock, known)


FAKE = r"""
#include <stdlib.h>
#include <string.h>
static int is(const char *name) { return !strcmp(getenv("FAKE_NVML"), name); }
int nvmlInit_v2(void) { return is("driver") ? 9 : 0; }
const char *nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "?"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = (void *)8; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = (void *)16;
  return strcmp(uuid, "GPU-1") ? 6 : 0;
}
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) {
  *now = is("mig");
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *found) {
  *found = (unsigned long long)device * 1000;
  return is("permission") ? 4 : is("none") ? 3 : 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *found) {
  *found = 41;
  return sensor;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *found) {
  *found = 1980;
  return kind != 1;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *found) {
  *found = 0x41; /* idle, and slowed down by heat */
  return 0;
}
int nvmlShutdown(void) { return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a library with NVML's functions."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(FAKE)
    path = folder / "libfake-nvml.so"
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", folder / "nvml.c", "-o", path], check=True)
    return path


@pytest.fixture
def pretend(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], nvml.Nvml]]:
    """Return a function that opens NVML in a state."""
    monkeypatch.setattr(nvml, "LIBRARY", str(library))
    libc = ctypes.CDLL(None)

    def opened(state: str, uuid: str = "") -> nvml.Nvml:
        libc.setenv(b"FAKE_NVML", state.encode(), 1)
        return nvml.Nvml(uuid)

    yield opened
    libc.unsetenv(b"FAKE_NVML")


def test_nvml_reads_counter_temperature_clock_and_throttling(
    pretend: Callable[..., nvml.Nvml],
) -> None:
    assert pretend("fine").joules() == 8.0
    found = pretend("fine", "GPU-1")
    assert found.millijoules() == 16000
    assert found.status() == Status(41.0, 1980.0, 0x40)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("permission", "NVML gives this user no permission"),
        ("mig", "MIG is on"),
        ("none", "this GPU has no energy counter"),
        ("driver", r"nvmlInit_v2: Driver Not Loaded \(9\)"),
    ],
)
def test_one_clear_message_where_there_is_no_energy(
    pretend: Callable[[str], nvml.Nvml], state: str, words: str
) -> None:
    with pytest.raises(DeviceError, match=f"^energy is not measured: .*{words}"):
        pretend(state)


def test_without_nvml_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-thing.so.1")
    with pytest.raises(DeviceError, match=r"libno-such-thing.so.1 cannot be opened"):
        nvml.Nvml()
