"""Meters: energy counters that exist here. Where there is none, energy is absent, not guessed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from wattune.errors import MissingDependencyError

RAPL = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of joules that only grows."""

    source: str

    def joules(self) -> float:
        """Return the energy used since some fixed moment."""

    def close(self) -> None:
        """Give the counter back."""


class Rapl:
    """The energy of all CPU packages, from the kernel's powercap files."""

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


class Nvml:
    """The energy counter of one NVIDIA GPU."""

    source = "nvml"

    def __init__(self, index: int = 0) -> None:
        """Open a device; `MeasureError` or NVML's own error where it counts no energy."""
        try:
            self._nvml: Any = import_module("pynvml")
        except ImportError as error:
            raise MissingDependencyError("nvidia-ml-py", "measuring a GPU's energy") from error
        self._nvml.nvmlInit()
        self._device = self._nvml.nvmlDeviceGetHandleByIndex(index)
        self.joules()

    def joules(self) -> float:
        """Return the energy since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device)) * 1e-3

    def close(self) -> None:
        """Give NVML back."""
        self._nvml.nvmlShutdown()


def _rapl(root: Path) -> Rapl | None:
    """Open RAPL where packages are listed and may be read (often root only)."""
    zones = [
        zone
        for zone in sorted(root.glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
    ]
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
    except Exception:  # pynvml raises its own classes, one per code: all mean "no counter here"
        return None
