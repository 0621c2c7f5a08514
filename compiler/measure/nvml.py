"""NVML through ctypes: the energy counter of one GPU, its temperature, clock and throttling.

Reads only: no setting of the device is ever changed.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wattune.compiler.measure.energy_protocol import Status
from wattune.errors import DeviceError

LIBRARY = "libnvidia-ml.so.1"
_NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND = 3, 4, 13
_TEMPERATURE_GPU = 0
_CLOCK_SM = 1
# Reasons that hold a clock back: power cap, slowdowns by hardware and heat, power brake. Idle and
# settings are none.
_THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Nvml:
    """The counter of one GPU; `DeviceError` says why there is none."""

    source = "nvml"

    def __init__(self, uuid: str = "") -> None:
        """Open the GPU of this UUID, ``GPU-...``, or the first one."""
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DeviceError(f"energy is not measured: {LIBRARY} cannot be opened") from error
        self._call("nvmlInit_v2")
        self._device = ctypes.c_void_p()
        device = ctypes.byref(self._device)
        if uuid:
            self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), device)
        else:
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), device)
        self._refuse_mig()
        self.millijoules()

    def _status(self, name: str, *arguments: Any) -> int:
        function = getattr(self._library, name, None)
        return _FUNCTION_NOT_FOUND if function is None else int(function(*arguments))

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._status(name, *arguments)
        if status == _NO_PERMISSION:
            raise DeviceError("energy is not measured: NVML gives this user no permission", status)
        if status:
            text = self._library.nvmlErrorString
            text.restype = ctypes.c_char_p
            words = (text(ctypes.c_int(status)) or b"").decode()
            raise DeviceError(f"energy is not measured: {name}: {words} ({status})", status)

    def _refuse_mig(self) -> None:
        """Refuse a GPU in parts: the counter is that of the whole."""
        now, later = ctypes.c_uint(), ctypes.c_uint()
        status = self._status(
            "nvmlDeviceGetMigMode", self._device, ctypes.byref(now), ctypes.byref(later)
        )
        if status == 0 and now.value:
            raise DeviceError("energy is not measured: MIG is on, its parts have no counters")

    def millijoules(self) -> int:
        """Return the energy since the driver was loaded."""
        found = ctypes.c_ulonglong()
        name = "nvmlDeviceGetTotalEnergyConsumption"
        status = self._status(name, self._device, ctypes.byref(found))
        if status in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
            raise DeviceError("energy is not measured: this GPU has no energy counter", status)
        if status:
            self._call(name, self._device, ctypes.byref(found))
        return found.value

    def joules(self) -> float:
        """Return the energy since the driver was loaded."""
        return 1e-3 * self.millijoules()

    def status(self) -> Status:
        """Return what the device says of itself; what it does not say is 0."""
        temperature, clock = ctypes.c_uint(), ctypes.c_uint()
        reasons = ctypes.c_ulonglong()
        for name, arguments in (
            ("nvmlDeviceGetTemperature", (ctypes.c_int(_TEMPERATURE_GPU), temperature)),
            ("nvmlDeviceGetClockInfo", (ctypes.c_int(_CLOCK_SM), clock)),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", (reasons,)),
        ):
            *given, found = arguments
            self._status(name, self._device, *given, ctypes.byref(found))
        return Status(float(temperature.value), float(clock.value), reasons.value & _THROTTLED)

    def close(self) -> None:
        """Give NVML back."""
        self._status("nvmlShutdown")
