"""Packing: find the layout for the sources that a caller has, and run its program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wattune.compiler.library.frameworks import as_bits, to_numpy
from wattune.compiler.library.manifest import Variant
from wattune.compiler.library.matching import Part
from wattune.compiler.library.packed import Packed, aligned_empty
from wattune.compiler.library.reasons import Mismatch, closest
from wattune.errors import ArgumentError
from wattune.ops.dtypes import FLOATS, numpy_dtype
from wattune.ops.operator import Argument, Array

Sources = Mapping[str, Array]


def pack_sources(parts: Sequence[Part], given: Sequence[Any], named: Mapping[str, Any]) -> Packed:
    """Pack for the first library whose kernels read such sources.

    Raises `ArgumentError` for a source that is missing, unknown, of another shape or out of range.
    """
    operator = parts[0].table.name
    sources = _by_name(parts, given, named)
    mismatches = []
    for part in parts:
        best: tuple[int, Variant] | None = None
        for variant in part.table.variants:
            fit = _fit(variant, sources)
            if isinstance(fit, Mismatch):
                mismatches.append(fit)
            elif best is None or fit > best[0]:
                best = fit, variant
        if best is not None:
            return _pack(part, best[1], sources)
    raise ArgumentError(f"{operator}.pack: {closest(mismatches)}")


def _by_name(
    parts: Sequence[Part], given: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Array]:
    names = list(
        dict.fromkeys(
            argument.source.name
            for part in parts
            for name in part.table.signature
            for variant in part.table.variants
            if (argument := variant.argument(name)) and argument.source is not None
        )
    )
    operator = parts[0].table.name
    if len(given) > len(names) or set(named) - set(names) or set(names[: len(given)]) & set(named):
        raise ArgumentError(
            f"{operator}.pack takes {', '.join(names) or 'nothing'}, each once; got {len(given)} "
            f"by position and {sorted(named)} by name"
        )
    found = {**dict(zip(names, given, strict=False)), **named}
    return {name: to_numpy(value) for name, value in found.items() if value is not None}


def _packed_arguments(variant: Variant) -> list[Argument]:
    return [a for a in variant.arguments if a.role == "packed" and a.source is not None]


def _fit(variant: Variant, sources: Sources) -> int | Mismatch:
    """Return how well sources fit a variant, higher is better, or why they do not.

    A source that is copied as it is may be a number for all elements; exact shapes fit better.
    """
    fit = 0
    arguments = _packed_arguments(variant)
    for at, argument in enumerate(arguments):
        source = argument.source
        assert source is not None
        wanted = f"{list(source.shape)} {source.dtype}"
        if source.name not in sources:
            return Mismatch(2 * at, f"{source.name} is missing", wanted)
        shape, number = sources[source.name].shape, not argument.layout_dependent
        if shape == source.shape or (number and (*shape, 1) == source.shape):
            fit += 3
        elif number and shape in ((), (1,)):
            fit += 2
        else:
            return Mismatch(2 * at, f"{source.name} has shape {list(shape)}", wanted)
    if unused := sorted(set(sources) - {a.source.name for a in arguments if a.source}):
        # Closer than a variant that the last source misses, not as close as one it almost fits.
        return Mismatch(2 * len(arguments) - 1, f"these kernels take no {unused[0]}")
    return fit


def _pack(part: Part, variant: Variant, sources: Sources) -> Packed:
    operator = part.table.name
    data: dict[str, Array] = {}
    for argument in _packed_arguments(variant):
        source = argument.source
        assert source is not None
        values = _converted(operator, source, sources[source.name])
        if argument.layout_dependent:
            data[argument.name] = _run(part, argument, values)
        else:
            data[argument.name] = np.broadcast_to(values, source.concrete({})).copy()
    return Packed(operator, variant.layout, variant.data, _common_fields(part, variant), data)


def _converted(operator: str, source: Argument, values: Array) -> Array:
    """Return the values in the source's dtype; a conversion that changes one is refused."""
    dtype = numpy_dtype(source.dtype)
    if values.dtype.kind not in "biuf" and values.dtype != dtype:
        raise ArgumentError(
            f"{operator}.pack: {source.name} has dtype {values.dtype}; expected {source.dtype}"
        )
    converted = np.ascontiguousarray(values, dtype)
    exact = source.dtype in FLOATS or values.dtype == dtype or bool(np.all(converted == values))
    if not exact:
        raise ArgumentError(
            f"{operator}.pack: {source.name} has values that {source.dtype} cannot hold"
        )
    return converted


def _run(part: Part, argument: Argument, values: Array) -> Array:
    packed = aligned_empty(int(argument.shape[0]))
    program = part.functions[f"{part.table.name}_pack_{argument.name}"]
    program(as_bits(values if values.flags.writeable else values.copy()), packed)
    return packed


def _common_fields(part: Part, chosen: Variant) -> dict[str, Any]:
    """Return the fields that all variants which read this data have in common."""
    sharing = [v for v in part.table.variants if v.data == chosen.data]
    return {
        name: value
        for name, value in chosen.problem.items()
        if name != "operator" and value != "" and all(v.problem[name] == value for v in sharing)
    }
