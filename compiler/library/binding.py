"""Bindings: which entry serves a kind of call, and where each of its tensors goes.

A binding is made once and kept: a call does only what depends on its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattune.compiler.library.frameworks import (
    as_bits,
    dtype_name,
    empty_of,
    is_torch,
    rows_of,
    same_shape,
    torch_module,
)
from wattune.compiler.library.manifest import Manifest, OperatorTable, Variant
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.reasons import Mismatch, closest
from wattune.errors import ArgumentError
from wattune.ops.operator import Argument

# A variant that got this far fits but for the arrays in the packed data.
_LAST = 1000


@dataclass(frozen=True)
class Part:
    """One operator of one loaded library; ``functions`` are its entries by name."""

    path: str
    manifest: Manifest
    table: OperatorTable
    functions: Mapping[str, Callable[..., Any]]

    @property
    def call(self) -> Callable[..., Any]:
        """Return the operator's entry."""
        return self.functions[self.table.name]


@dataclass(frozen=True)
class Binding:
    """Where the tensors of a call go, as positions in the entry's argument list.

    ``inputs`` are pairs of where the caller gave a tensor and where it goes; ``copied`` are those
    that may be copied into better memory (states may not: kernels write them). ``packed`` are the
    arrays of the packed data that the caller gave at ``packed_index``. ``output`` is set where
    there is one only. ``allocate`` makes the outputs for a call's tensors. ``as_bits``: some are
    numpy's bfloat16, which DLPack does not pass. ``torch`` is set where inputs are torch's.
    """

    call: Callable[..., Any]
    blank: list[Any]
    inputs: tuple[tuple[int, int], ...]
    copied: tuple[int, ...]
    packed_index: int
    packed: tuple[tuple[str, int], ...]
    workspace: int | None
    output: int | None
    outputs: tuple[int, ...]
    allocate: Callable[[Sequence[Any]], Any]
    as_bits: bool
    torch: Any | None


def caller_names(table: OperatorTable) -> tuple[str, ...]:
    """Name what a caller brings besides packed data, in calling order."""
    roles = {a.name: a.role for v in table.variants for a in v.arguments}
    return tuple(n for n in table.signature if roles.get(n) in ("input", "state"))


def bind(
    parts: Sequence[Part], given: Sequence[Any], found: Mapping[str, int], packed: int | None
) -> Binding:
    """Return the binding of the first library that serves such tensors.

    ``found`` says where in ``given`` each input is, ``packed`` where the packed data is. Raises
    `ArgumentError` with the reasons of the variants that came closest.
    """
    tensors = {name: given[i] for name, i in found.items()}
    mismatches = []
    for part in parts:
        for variant in part.table.variants:
            reason = mismatch(variant, tensors, None if packed is None else given[packed])
            if reason is None:
                return _binding(part, variant, tensors, found, packed)
            mismatches.append(reason)
    raise ArgumentError(f"{parts[0].table.name}: {closest(mismatches)}")


def mismatch(
    variant: Variant, tensors: Mapping[str, Any], packed: Packed | None
) -> Mismatch | None:
    """Say why a variant cannot take a call; None where it can.

    Shapes are not looked at unless packed data fixes them: the entry checks them.
    """
    names = variant.names("packed")
    if (packed is None) != (not names):
        return Mismatch(0, "packed data is missing", "what .pack() returns" if names else "none")
    if packed is not None and packed.shared != variant.data:
        return Mismatch(1, f"no kernel reads {packed!r}", variant.data)
    if packed is not None and packed.layout != variant.layout:
        return Mismatch(
            2,
            f"the packed data has layout {packed.layout}, the kernels of this library read "
            f"{variant.layout}: pack the weights again with this library's .pack()",
        )
    return _input_mismatch(variant, tensors, packed is None) or _data_mismatch(variant, packed)


def _input_mismatch(
    variant: Variant, tensors: Mapping[str, Any], by_shape: bool
) -> Mismatch | None:
    expected = [a for a in variant.arguments if a.role in ("input", "state")]
    for at, argument in enumerate(expected, start=3):
        name = argument.name
        if name not in tensors:
            return Mismatch(at, f"{name} is missing", f"{_shape(argument)} {argument.dtype}")
        given, shape = dtype_name(tensors[name]), tensors[name].shape
        if given != argument.dtype:
            return Mismatch(at, f"{name} is {given}", argument.dtype)
        if by_shape and not same_shape(shape, argument.shape):
            return Mismatch(at, f"{name} has shape {list(shape)}", _shape(argument))
    if unknown := sorted(set(tensors) - {a.name for a in expected}):
        return Mismatch(3 + len(expected), f"{unknown[0]} is given, but these kernels take none")
    return None


def _data_mismatch(variant: Variant, packed: Packed | None) -> Mismatch | None:
    if packed is None:
        return None
    for argument in variant.arguments:
        if argument.role != "packed" or argument.source is None:
            continue
        name = argument.name
        if name not in packed.data:
            source = argument.source.name
            return Mismatch(_LAST, f"the packed data holds no {name}: give {source}= to .pack()")
        if tuple(packed.data[name].shape) != argument.shape:
            shape = list(packed.data[name].shape)
            return Mismatch(_LAST, f"packed {name} has shape {shape}", _shape(argument))
    return None


def _shape(argument: Argument) -> str:
    return f"[{', '.join(map(str, argument.shape))}]"


def _binding(
    part: Part,
    variant: Variant,
    tensors: Mapping[str, Any],
    found: Mapping[str, int],
    packed: int | None,
) -> Binding:
    at = {name: i for i, name in enumerate(part.table.signature)}
    workspace, outputs = variant.names("workspace"), variant.names("output")
    return Binding(
        call=part.call,
        blank=[None] * len(at),
        inputs=tuple((i, at[name]) for name, i in found.items()),
        copied=tuple(at[name] for name in variant.names("input") if name in found),
        packed_index=-1 if packed is None else packed,
        packed=tuple((name, at[name]) for name in variant.names("packed")),
        workspace=at[workspace[0]] if workspace else None,
        output=at[outputs[0]] if len(outputs) == 1 else None,
        outputs=tuple(at[name] for name in outputs),
        allocate=_allocator(variant, tensors, found),
        as_bits=any(as_bits(tensor) is not tensor for tensor in tensors.values()),
        torch=torch_module() if any(is_torch(t) for t in tensors.values()) else None,
    )


def _allocator(
    variant: Variant, tensors: Mapping[str, Any], found: Mapping[str, int]
) -> Callable[[Sequence[Any]], Any]:
    """Return what makes the outputs, of the framework of the first tensor."""
    sizes = {
        dim: (found[argument.name], i)
        for argument in reversed(variant.arguments)
        if argument.name in found
        for i, dim in enumerate(argument.shape)
        if isinstance(dim, str)
    }
    like = next(iter(tensors.values()))
    outputs = [a for a in variant.arguments if a.role == "output"]
    if len(outputs) == 1 and len(outputs[0].shape) == 2:
        rows, columns = outputs[0].shape
        if isinstance(rows, str) and isinstance(columns, int) and sizes[rows][1] == 0:
            # The usual case, for speed.
            return rows_of(like, sizes[rows][0], columns, outputs[0].dtype)
    makers = [(empty_of(like, a.dtype), a) for a in outputs]

    def allocate(given: Sequence[Any]) -> Any:
        actual = {name: _size(given[i], dim) for name, (i, dim) in sizes.items()}
        made = tuple(make(argument.concrete(actual)) for make, argument in makers)
        return made[0] if len(made) == 1 else made

    return allocate


def _size(tensor: Any, dim: int) -> int:
    """Return a size; 0 for a tensor of fewer dimensions, which the entry refuses."""
    return int(tensor.shape[dim]) if dim < len(tensor.shape) else 0
