"""What an entry must know of torch and numpy tensors; torch is never imported here first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wattune.ops.dtypes import numpy_dtype


def torch_module() -> Any | None:
    """Return torch where the program has imported it."""
    return sys.modules.get("torch")


def is_torch(tensor: Any) -> bool:
    """Say whether this is a torch tensor."""
    torch = torch_module()
    return torch is not None and isinstance(tensor, torch.Tensor)


def is_tensor(value: Any) -> bool:
    """Say whether this is a torch tensor, a numpy array or another tensor of DLPack."""
    return hasattr(value, "__dlpack__")


def device_kind(tensor: Any) -> str:
    """Return the kind of device that a tensor is on: ``cpu``, ``cuda`` or another of torch's."""
    # numpy has it since 2.0.
    return str(getattr(tensor, "device", "cpu")).partition(":")[0]


def dtype_name(tensor: Any) -> str:
    """Return the dtype's name, the same for both frameworks."""
    return str(tensor.dtype).removeprefix("torch.")


def empty_of(like: Any, at: int, dtype: str) -> Callable[[Sequence[Any], Sequence[int]], Any]:
    """Return what makes uninitialised tensors from a call's tensors and a shape.

    They are of the framework of tensor ``at``, and on its device.
    """
    torch = torch_module()
    if is_torch(like) and torch is not None:
        wanted = getattr(torch, dtype)
        return lambda given, shape: given[at].new_empty(shape, dtype=wanted)
    made = numpy_dtype(dtype)
    return lambda given, shape: np.empty(shape, made)


def rows_of(
    like: Any, first: int, row: tuple[int, ...], dtype: str
) -> Callable[[Sequence[Any]], Any]:
    """Return what makes [rows, *row] from a call's tensors; ``first`` of them has the rows.

    torch takes sizes one by one faster than as a tuple, and its own dtype faster than a given one
    (1.2 us a tensor becomes 0.7).
    """
    torch = torch_module()
    if is_torch(like) and torch is not None:
        wanted = getattr(torch, dtype)
        if like.dtype == wanted:
            return lambda given: given[first].new_empty(given[first].shape[0], *row)
        return lambda given: given[first].new_empty(given[first].shape[0], *row, dtype=wanted)
    made = numpy_dtype(dtype)
    return lambda given: np.empty((given[first].shape[0], *row), made)


def as_bits(tensor: Any) -> Any:
    """Return numpy's bfloat16 as uint16, which DLPack can pass; anything else as it is."""
    if isinstance(tensor, np.ndarray) and tensor.dtype.type.__name__ == "bfloat16":
        return tensor.view(np.uint16)
    return tensor


def is_read_only(value: Any) -> bool:
    """Say whether this is a numpy array that must not be written to, which DLPack does not pass."""
    return isinstance(value, np.ndarray) and not value.flags.writeable


def tidy(tensor: Any) -> Any:
    """Return a copy that is contiguous, aligned and writable."""
    if is_torch(tensor):
        torch = torch_module()
        assert torch is not None
        return tensor.detach().clone(memory_format=torch.contiguous_format)
    return np.array(tensor, order="C", copy=True)


def to_numpy(tensor: Any) -> Any:
    """Return a tensor, a number or a list as a numpy array."""
    if is_torch(tensor):
        held = tensor.detach().cpu()
        if dtype_name(held) == "bfloat16":
            torch: Any = torch_module()
            bits: Any = held.view(torch.int16).numpy()
            return bits.view(numpy_dtype("bfloat16"))
        return held.numpy()
    return np.asarray(tensor)


def compiling_check() -> Callable[[], bool]:
    """Return what says whether torch.compile is tracing the program."""
    torch = torch_module()
    return torch.compiler.is_compiling if torch is not None else bool


def same_shape(given: Sequence[int], expected: Sequence[int | str]) -> bool:
    """Say whether a shape is the expected one; a name stands for any size."""
    return len(given) == len(expected) and all(
        isinstance(want, str) or size == want for size, want in zip(given, expected, strict=True)
    )
