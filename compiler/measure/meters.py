"""Meters: energy counters that exist here. Where there is none, energy is absent, not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from wattune.compiler.measure.nvml import Nvml
from wattune.errors import DeviceError

RAPL = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of joules that only grows."""

    source: str

    def joules(self) -> float:
        """Return the energy used since some fixed moment."""

    def close(self) -> None:
        """Give the counter back."""


class Rapl:
    """The energy of all CPU packages and their memory, from the kernel's powercap files."""

    source = "rapl"

    def __init__(self, zones: list[Path]) -> None:
        """Read these zones; they wrap at their own range."""
        self._zones = zones
        self._ranges = [int((z / "max_energy_range_uj").read_text()) for z in zones]
        self._last = [0] * len(zones)
        self._total = 0
        self.joules()
        self._total = 0

    def joules(self) -> float:
        """Return the energy since the meter was opened; call it at least once a minute."""
        for i, zone in enumerate(self._zones):
            value = int((zone / "energy_uj").read_text())
            grown = value - self._last[i]
            self._total += grown if grown >= 0 else grown + self._ranges[i]
            self._last[i] = value
        return self._total * 1e-6

    def close(self) -> None:
        """Nothing is held."""


def _counts(zone: Path) -> bool:
    name = (zone / "name").read_text().strip()
    return name == "dram" or (zone.name.count(":") == 1 and name.startswith("package"))


def _rapl(root: Path) -> Rapl | None:
    """Open RAPL where packages are listed and may be read (often root only).

    A package's zone holds those of its cores, which would count twice; memory's is beside it.
    """
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _counts(zone)]
    try:
        return Rapl(zones) if zones else None
    except OSError:
        return None


def open_meter(kind: str, rapl_root: Path = RAPL) -> Meter | None:
    """Return the meter of a target kind on this machine, or None where there is none."""
    if kind == "cpu":
        return _rapl(rapl_root)
    try:
        return Nvml()
    except DeviceError:
        return None


def no_meter(kind: str) -> str:
    """Say why `open_meter` returns None."""
    if kind == "cpu":
        return "this machine has no readable energy counter (RAPL, /sys/class/powercap)"
    try:
        Nvml().close()
    except DeviceError as error:
        return str(error)
    return "the energy counter can be read now"
