"""Bindings: which entry serves a kind of call, and where each of its tensors goes.

A binding is made once and kept: a call does only what depends on its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattune.compiler.library.coverage import variant_workspace
from wattune.compiler.library.frameworks import (
    as_bits,
    empty_of,
    is_torch,
    rows_of,
    torch_module,
)
from wattune.compiler.library.manifest import OperatorTable, Variant
from wattune.compiler.library.matching import Given, Part, find
from wattune.errors import ArgumentError
from wattune.ops.operator import Extent, derived_sizes

Allocate = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Binding:
    """Where the tensors of a call go, as positions in the entry's argument list.

    ``inputs`` are pairs of where the caller gave a tensor and where it goes; ``copied`` are those
    that may be copied into better memory (states may not: they are large, or written). ``packed``
    are the arrays of the packed data that the caller gave at ``packed_index``. ``output`` is set
    where there is one only. ``allocate`` makes the outputs for a call's tensors, ``scratch`` the
    workspace where callers must bring it. ``bounds`` are pairs of a size that a caller may bound
    (its number in `Entry.bounded`) and where that goes. ``as_bits`` are those that may be numpy's
    bfloat16, which DLPack does not pass. ``torch`` is set where inputs are torch's.
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
    allocate: Allocate
    scratch: Allocate | None
    bounds: tuple[tuple[int, int], ...]
    as_bits: tuple[int, ...]
    torch: Any | None


def caller_names(tables: Sequence[OperatorTable]) -> tuple[str, ...]:
    """Name what a caller brings besides packed data, in calling order."""
    variants = [variant for table in tables for variant in table.variants]
    roles = {a.name: a.role for variant in variants for a in variant.arguments}
    return tuple(n for n in tables[0].signature if roles.get(n) in ("input", "state"))


def bind(
    parts: Sequence[Part], given: Given, bounded: Sequence[str] = ()
) -> tuple[Binding, tuple[int, ...]]:
    """Return the binding of the first library that serves a call, and what `find` says of it.

    ``bounded`` names the sizes that a caller may bound.
    """
    (part, variant), telling = find(parts, given)
    at = {name: i for i, name in enumerate(part.table.signature)}
    workspace, outputs = variant.names("workspace"), variant.names("output")
    tensors = given.tensors
    bits = [name for name, tensor in tensors.items() if as_bits(tensor) is not tensor]
    bits += [a.name for a in variant.arguments if a.role == "output" and a.dtype == "bfloat16"]
    binding = Binding(
        call=part.functions[variant.entry],
        blank=[None] * (len(at) + len(part.bounded)),
        inputs=tuple((i, at[name]) for name, i in given.at.items()),
        copied=tuple(at[name] for name in variant.names("input") if name in given.at),
        packed_index=given.packed_at,
        packed=tuple((name, at[name]) for name in variant.names("packed")),
        workspace=at[workspace[0]] if workspace else None,
        output=at[outputs[0]] if len(outputs) == 1 else None,
        outputs=tuple(at[name] for name in outputs),
        allocate=_allocator(part.table.name, variant, given),
        scratch=_scratch(part, variant, given),
        bounds=tuple((bounded.index(n), i) for i, n in enumerate(part.bounded, start=len(at))),
        as_bits=tuple(at[name] for name in bits),
        torch=torch_module() if any(is_torch(t) for t in tensors.values()) else None,
    )
    return binding, telling


def _allocator(operator: str, variant: Variant, given: Given) -> Allocate:
    """Return what makes the outputs, of the framework of the first tensor."""
    outputs = [a for a in variant.arguments if a.role == "output"]
    sizes = {
        dim: (given.at[argument.name], i)
        for argument in reversed(variant.arguments)
        if argument.name in given.at
        for i, dim in enumerate(argument.shape)
        if isinstance(dim, str)
    }
    named = {d for a in outputs for d in a.shape if isinstance(d, str)}
    if missing := sorted(named - set(sizes) - set(variant.derived)):
        return _refusal(f"{operator}: give out=, as no other tensor has the size {missing[0]}")
    if not outputs:
        return lambda tensors: None
    name, like = next(iter(given.tensors.items()))
    makers = []
    for argument in outputs:
        first, *row = argument.shape or (0,)
        rows = isinstance(first, str) and sizes.get(first, (0, 1))[1] == 0
        if rows and all(isinstance(d, int) for d in row):
            # The usual case, for speed.
            columns = tuple(d for d in row if isinstance(d, int))
            makers.append(rows_of(like, sizes[str(first)][0], columns, argument.dtype))
        else:
            make = empty_of(like, given.at[name], argument.dtype)
            makers.append(_maker(make, argument.shape, sizes, variant.derived))
    if len(makers) == 1:
        return makers[0]
    return lambda tensors: tuple([make(tensors) for make in makers])


def _maker(
    make: Callable[[Sequence[Any], Sequence[int]], Any],
    shape: tuple[int | str, ...],
    sizes: Mapping[str, tuple[int, int]],
    derived: Mapping[str, tuple[Extent, ...]],
) -> Allocate:
    if not derived:
        where = [sizes[dim] if isinstance(dim, str) else (-1, dim) for dim in shape]
        return lambda tensors: make(
            tensors, [d if i < 0 else int(tensors[i].shape[d]) for i, d in where]
        )

    def allocate(tensors: Sequence[Any]) -> Any:
        known = {name: int(tensors[i].shape[d]) for name, (i, d) in sizes.items()}
        known.update(derived_sizes(derived, known))
        return make(tensors, [known[dim] if isinstance(dim, str) else dim for dim in shape])

    return allocate


def _scratch(part: Part, variant: Variant, given: Given) -> Allocate | None:
    """Return what makes the workspace of a call on a GPU, where the library has none of its own.

    Only torch's memory follows the order of a stream; callers of other frameworks bring theirs.
    """
    most = variant_workspace(variant) if part.kind != "cpu" else 0
    if not most or not given.tensors:
        return None
    name, like = next(iter(given.tensors.items()))
    if not is_torch(like):
        return None
    make = empty_of(like, given.at[name], "uint8")
    return lambda tensors: make(tensors, (most,))


def _refusal(message: str) -> Allocate:
    def refuse(tensors: Sequence[Any]) -> Any:
        raise ArgumentError(message)

    return refuse
