"""Calling TVM's functions with ctypes alone: tensors in DLPack's form, errors as text."""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from wattune.errors import MeasureError, MissingDependencyError

_DTYPE = re.compile(r"(int|uint|float|bfloat)(\d+)")
_DTYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}
_TENSOR_POINTER = 7  # kTVMFFIDLTensorPtr
_CUDA = 2  # kDLCUDA
_OBJECT_HEADER = 24  # sizeof(TVMFFIObject)


class _Tensor(ctypes.Structure):
    """A ``DLTensor``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Any(ctypes.Structure):
    """A ``TVMFFIAny``."""

    _fields_ = [
        ("type_index", ctypes.c_int32),
        ("padding", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    ]


class _Bytes(ctypes.Structure):
    """A ``TVMFFIByteArray``."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    def text(self) -> str:
        """Return the bytes as text."""
        return ctypes.string_at(self.data, self.size).decode(errors="replace") if self.data else ""


def runtime_library() -> Path:
    """Return the file of libtvm_ffi."""
    name = "libtvm_ffi.dylib" if sys.platform == "darwin" else "libtvm_ffi.so"
    try:
        files = importlib.metadata.files("apache-tvm-ffi") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise MissingDependencyError("apache-tvm-ffi", "calling kernels")


@cache
def runtime() -> ctypes.CDLL:
    """Load libtvm_ffi for every library opened later, without importing ``tvm_ffi``.

    Importing the package would import torch where that is installed.
    """
    return ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)


def raised() -> str:
    """Return, and clear, the error that the last failed call left behind."""
    handle = ctypes.c_void_p()
    runtime().TVMFFIErrorMoveFromRaised(ctypes.byref(handle))
    if not handle.value:
        return "an error without a message"
    cell = ctypes.cast(handle.value + _OBJECT_HEADER, ctypes.POINTER(_Bytes))
    text = f"{cell[0].text()}: {cell[1].text()}"
    runtime().TVMFFIObjectDecRef(handle)
    return text


@contextmanager
def stream_of_calls(device: int, stream: int) -> Iterator[None]:
    """Have calls of this thread launch GPU kernels on a stream of a device."""
    before = ctypes.c_void_p()
    place = ctypes.c_int32(_CUDA), ctypes.c_int32(device)
    if runtime().TVMFFIEnvSetStream(*place, ctypes.c_void_p(stream), ctypes.byref(before)):
        raise MeasureError("crash", f"the stream cannot be set: {raised()}")
    try:
        yield
    finally:
        runtime().TVMFFIEnvSetStream(*place, before, None)


class Call:
    """The arguments of a call: tensors over memory that the caller keeps alive."""

    def __init__(self, tensors: Sequence[tuple[int, str, tuple[int, ...]]]) -> None:
        """Describe tensors as (address, dtype, shape), contiguous, in calling order."""
        self._shapes = [(ctypes.c_int64 * len(shape))(*shape) for _, _, shape in tensors]
        self._tensors = (_Tensor * len(tensors))()
        self.arguments = (_Any * len(tensors))()
        self.count = len(tensors)
        for i, (address, dtype, shape) in enumerate(tensors):
            code, bits = _dtype(dtype)
            kept = ctypes.cast(self._shapes[i], ctypes.POINTER(ctypes.c_int64))
            self._tensors[i] = _Tensor(address, 1, 0, len(shape), code, bits, 1, kept, None, 0)
            self.arguments[i] = _Any(_TENSOR_POINTER, 0, self.slot(i))

    def slot(self, index: int) -> int:
        """Return the address of a tensor's data pointer, which is its first field."""
        return ctypes.addressof(self._tensors) + index * ctypes.sizeof(_Tensor)

    def point(self, index: int, address: int) -> None:
        """Let a tensor lie elsewhere from the next call on."""
        self._tensors[index].data = address


def _dtype(name: str) -> tuple[int, int]:
    if not (match := _DTYPE.fullmatch(name)):
        raise MeasureError("crash", f"dtype {name!r} cannot be passed to a kernel")
    return _DTYPE_CODES[match[1]], int(match[2])


class Library:
    """An opened shared library and its functions by name."""

    def __init__(self, path: str) -> None:
        """Open the library with its own scope."""
        runtime()
        self._library = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)

    def address(self, name: str) -> int:
        """Return the address of a function."""
        function = getattr(self._library, f"__tvm_ffi_{name}")
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    def call(self, name: str, call: Call) -> None:
        """Call a function once; an error it returns is a `MeasureError`."""
        function = getattr(self._library, f"__tvm_ffi_{name}")
        result = _Any()
        if function(None, call.arguments, ctypes.c_int32(call.count), ctypes.byref(result)):
            raise MeasureError("wrong_result", f"{name} answered with an error: {raised()}")

    def set_threads(self, threads: int) -> None:
        """Tell the library's launcher how many threads to use; fewer would be another candidate."""
        if (used := self._library.wattune_set_num_threads(ctypes.c_int(threads))) != threads:
            raise MeasureError("crash", f"{used} threads can run where {threads} were asked for")

    def close(self) -> None:
        """Unload the library; none of its functions may be running."""
        _ctypes.dlclose(self._library._handle)
