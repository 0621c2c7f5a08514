"""NVIDIA's driver through ctypes: its functions by name, its errors in words, what a GPU is.

Describing a device makes no context on it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from wattune.errors import DeviceError

LIBRARY = "libcuda.so.1"
# Statuses of cuda.h that mean something to the caller.
OUT_OF_MEMORY = 2
NO_DEVICE = 100
NOT_READY = 600

# Attributes of cuda.h: field of a target -> number.
PROCESSORS, CACHE_BYTES, _SHARED_BYTES = 16, 38, 97
_ATTRIBUTES = {"cores": PROCESSORS, "l1": _SHARED_BYTES, "l2": CACHE_BYTES}
_MAJOR, _MINOR = 75, 76
# Compute capabilities with instructions that only code for exactly them may use.
_EXACT = 90


class Driver:
    """The CUDA driver; `DeviceError` where there is none or it cannot start."""

    def __init__(self) -> None:
        """Open and initialise the driver."""
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DeviceError(
                f"no NVIDIA driver: {LIBRARY} cannot be opened (GPU kernels need driver 580 or "
                "newer)"
            ) from error
        self("cuInit", ctypes.c_uint(0))

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function; a status other than 0 is a `DeviceError`."""
        if status := self.status(name, *arguments):
            raise DeviceError(f"{name}: {self.describe(status)}", status)

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function and return its status."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise DeviceError(f"the NVIDIA driver is too old: it has no {name}") from None
        return int(function(*arguments))

    def describe(self, status: int) -> str:
        """Name a status, with the driver's own words."""
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, name)(ctypes.c_int(status), ctypes.byref(text))
            words.append((text.value or b"unknown to the driver").decode())
        return f"{words[0]} ({status}): {words[1]}"

    def version(self) -> str:
        """Return the CUDA version that the driver knows, ``13.0``."""
        found = ctypes.c_int()
        self("cuDriverGetVersion", ctypes.byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    def device(self, index: int = 0) -> int:
        """Return the handle of a device."""
        count, found = ctypes.c_int(), ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        if index >= count.value:
            raise DeviceError(f"GPU {index} is asked for; this machine has {count.value}")
        self("cuDeviceGet", ctypes.byref(found), ctypes.c_int(index))
        return found.value

    def name(self, device: int) -> str:
        """Return a device's name, ``NVIDIA H200``."""
        text = ctypes.create_string_buffer(256)
        self("cuDeviceGetName", text, ctypes.c_int(256), ctypes.c_int(device))
        return text.value.decode(errors="replace")

    def attribute(self, device: int, number: int) -> int:
        """Return an attribute of a device."""
        found = ctypes.c_int()
        self(
            "cuDeviceGetAttribute",
            ctypes.byref(found),
            ctypes.c_int(number),
            ctypes.c_int(device),
        )
        return found.value

    def capability(self, device: int) -> int:
        """Return the compute capability, 90 for 9.0."""
        return 10 * self.attribute(device, _MAJOR) + self.attribute(device, _MINOR)

    def memory(self, device: int) -> int:
        """Return the bytes of a device's memory."""
        found = ctypes.c_size_t()
        self("cuDeviceTotalMem_v2", ctypes.byref(found), ctypes.c_int(device))
        return found.value


@cache
def driver() -> Driver:
    """Return the driver, opened at the first call."""
    return Driver()


def arch_of(capability: int) -> str:
    """Return the architecture that uses all of a device: ``sm_90a`` for 90."""
    return f"sm_{capability}" + ("a" if capability >= _EXACT else "")


@cache
def gpu_fields(index: int = 0) -> dict[str, Any]:
    """Return the fields of the target that a GPU of this machine is."""
    cuda = driver()
    device = cuda.device(index)
    sizes = {name: cuda.attribute(device, number) for name, number in _ATTRIBUTES.items()}
    return {
        "kind": "cuda",
        "arch": arch_of(cuda.capability(device)),
        "device": cuda.name(device),
        **sizes,
        "threads": sizes["cores"],
        "l3": sizes["l2"],
        "memory": cuda.memory(device),
    }


def gpu_facts(index: int = 0) -> dict[str, Any]:
    """Return what tells measurements on one GPU from those on another."""
    fields = gpu_fields(index)
    return {"device": fields["device"], "sms": fields["cores"], "driver": driver().version()}


def gpu_lacking(arch: str, index: int = 0) -> str:
    """Say why code for an architecture does not run on this machine; empty where it does."""
    try:
        cuda = driver()
        device = cuda.device(index)
        capability, name = cuda.capability(device), cuda.name(device)
    except DeviceError as error:
        return str(error)
    wanted = int(arch.removeprefix("sm_").rstrip("a"))
    same_major = wanted // 10 == capability // 10
    fits = wanted == capability if arch.endswith("a") else same_major and wanted <= capability
    return "" if fits else f"it is {arch}, {name} is {arch_of(capability)}"
