"""Bindings: which entry serves a kind of call, and where each of its tensors goes.

A binding is made once and kept: a call does only what depends on its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattune.compiler.library.frameworks import (
    dtype_name,
    empty_of,
    is_torch,
    kernel_view,
    same_shape,
    torch_module,
)
from wattune.compiler.library.manifest import Manifest, OperatorTable, Variant
from wattune.compiler.library.packed import Packed
from wattune.errors import ArgumentError

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

    ``inputs`` are in the order that the caller gave them. ``allocate`` makes the outputs for these
    inputs. ``views`` says that tensors go through `kernel_view`; ``torch`` is the module for torch
    tensors that might require gradients.
    """

    call: Callable[..., Any]
    blank: tuple[None, ...]
    inputs: tuple[int, ...]
    packed: tuple[tuple[str, int], ...]
    workspace: int | None
    outputs: tuple[int, ...]
    allocate: Callable[[Sequence[Any]], list[Any]]
    views: bool
    torch: Any | None


def caller_names(table: OperatorTable) -> tuple[str, ...]:
    """Name what a caller brings besides packed data, in calling order."""
    roles = {a.name: a.role for v in table.variants for a in v.arguments}
    return tuple(n for n in table.signature if roles.get(n) in ("input", "state"))


def bind(parts: Sequence[Part], tensors: Mapping[str, Any], packed: Packed | None) -> Binding:
    """Return the binding of the first library that serves such tensors.

    Raises `ArgumentError` with the reason of the variant that came closest.
    """
    reasons: dict[int, dict[str, None]] = {}
    for part in parts:
        for variant in part.table.variants:
            rank, reason = mismatch(variant, tensors, packed) or (None, "")
            if rank is None:
                return _binding(part, variant, tensors)
            reasons.setdefault(rank, {})[reason] = None
    closest = " or ".join(reasons[max(reasons)])
    raise ArgumentError(f"{parts[0].table.name}: {closest}")


def mismatch(
    variant: Variant, tensors: Mapping[str, Any], packed: Packed | None
) -> tuple[int, str] | None:
    """Say why a variant cannot take a call, and how far it came; None where it can.

    Shapes are not looked at unless packed data fixes them: the entry checks them.
    """
    names = variant.names("packed")
    if (packed is None) != (not names):
        return 0, "packed data is missing; make it with .pack()" if names else "nothing is packed"
    if packed is not None and packed.shared != variant.data:
        return 1, f"no kernel of this library reads {packed!r}; it serves: see .buckets"
    if packed is not None and packed.layout != variant.layout:
        return 2, (
            f"the packed data has layout {packed.layout}, the kernels of this library read "
            f"{variant.layout}; pack the weights again with this library's .pack()"
        )
    return _input_mismatch(variant, tensors, packed is None) or _data_mismatch(variant, packed)


def _input_mismatch(
    variant: Variant, tensors: Mapping[str, Any], by_shape: bool
) -> tuple[int, str] | None:
    expected = [a for a in variant.arguments if a.role in ("input", "state")]
    for at, argument in enumerate(expected, start=3):
        name = argument.name
        if name not in tensors:
            return at, f"{name} is missing; expected {list(argument.shape)} {argument.dtype}"
        given, shape = dtype_name(tensors[name]), tensors[name].shape
        if given != argument.dtype:
            return at, f"{name} is {given}; expected {argument.dtype}"
        if by_shape and not same_shape(shape, argument.shape):
            return at, f"{name} has shape {list(shape)}; expected {list(argument.shape)}"
    if unknown := sorted(set(tensors) - {a.name for a in expected}):
        return 3 + len(expected), f"{unknown[0]} is given, but these kernels take none"
    return None


def _data_mismatch(variant: Variant, packed: Packed | None) -> tuple[int, str] | None:
    if packed is None:
        return None
    for argument in variant.arguments:
        if argument.role != "packed" or argument.source is None:
            continue
        name = argument.name
        if name not in packed.data:
            source = argument.source.name
            return _LAST, f"the packed data holds no {name}; give {source}= to .pack()"
        if tuple(packed.data[name].shape) != argument.shape:
            return _LAST, (
                f"packed {name} has shape {list(packed.data[name].shape)}; "
                f"expected {list(argument.shape)}"
            )
    return None


def _binding(part: Part, variant: Variant, tensors: Mapping[str, Any]) -> Binding:
    at = {name: i for i, name in enumerate(part.table.signature)}
    workspace = variant.names("workspace")
    return Binding(
        call=part.call,
        blank=(None,) * len(at),
        inputs=tuple(at[name] for name in tensors),
        packed=tuple((name, at[name]) for name in variant.names("packed")),
        workspace=at[workspace[0]] if workspace else None,
        outputs=tuple(at[name] for name in variant.names("output")),
        allocate=_allocator(variant, tensors),
        views=any(t is not kernel_view(t) for t in tensors.values()),
        torch=torch_module() if any(is_torch(t) for t in tensors.values()) else None,
    )


def _allocator(
    variant: Variant, tensors: Mapping[str, Any]
) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what makes the outputs, of the framework of the first tensor."""
    names = list(tensors)
    found = {
        dim: (names.index(argument.name), i)
        for argument in reversed(variant.arguments)
        if argument.name in tensors
        for i, dim in enumerate(argument.shape)
        if isinstance(dim, str)
    }
    like = next(iter(tensors.values()))
    outputs = [a for a in variant.arguments if a.role == "output"]
    makers = [(empty_of(like, a.dtype), a) for a in outputs]
    if len(outputs) == 1 and isinstance(outputs[0].shape[0], str):
        rows = outputs[0].shape[0]
        rest = [d for d in outputs[0].shape[1:] if not isinstance(d, str)]
        if len(rest) == len(outputs[0].shape) - 1:
            # The usual case, without a loop.
            (make, _), (tensor, dim) = makers[0], found[rows]
            return lambda given: [make((given[tensor].shape[dim], *rest))]

    def allocate(given: Sequence[Any]) -> list[Any]:
        sizes = {name: given[tensor].shape[dim] for name, (tensor, dim) in found.items()}
        return [make(argument.concrete(sizes)) for make, argument in makers]

    return allocate
