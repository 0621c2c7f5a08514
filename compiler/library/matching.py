"""Which variant of the loaded libraries a call is for: fields, dtypes, packed data, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattune.compiler.library.frameworks import device_kind, dtype_name, same_shape
from wattune.compiler.library.manifest import Manifest, OperatorTable, Variant
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.reasons import Mismatch, closest
from wattune.compiler.library.variants import as_text, differing, same_value
from wattune.errors import ArgumentError
from wattune.ops.operator import Argument

# Ranks of mismatches: what is looked at first is furthest from a fit.
_FIELDS, _PACKED, _DATA, _LAYOUT, _INPUTS = range(5)
# A variant that got this far fits but for the arrays in the packed data.
_LAST = 1000


@dataclass(frozen=True)
class Part:
    """One operator of one loaded library; ``functions`` are its entries by name."""

    path: str
    manifest: Manifest
    table: OperatorTable
    functions: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Return the kind of device whose tensors it takes: ``cpu`` or ``cuda``."""
        return self.manifest.kind

    @property
    def bounded(self) -> tuple[str, ...]:
        """Name the sizes whose bounds an entry takes after its tensors."""
        return self.manifest.bounded(self.table)

    @property
    def call(self) -> Any:
        """Return the operator's entry, for any variant."""
        return self.functions[self.table.name]


@dataclass(frozen=True)
class Given:
    """What a call brings: ``at`` says where in it each tensor is, and packed data (-1: none).

    ``fields`` are fields of the problem, to choose between variants that take the same tensors.
    """

    tensors: Mapping[str, Any]
    at: Mapping[str, int]
    packed: Packed | None
    packed_at: int
    fields: Mapping[str, Any]


Found = tuple[Part, Variant]


def find(parts: Sequence[Part], given: Given) -> tuple[Found, tuple[int, ...]]:
    """Return the first library that serves a call, and its variant.

    The numbers say which of the call's tensors must be looked at to find the same again for equal
    dtypes, fields and packed data: those whose shapes tell variants apart. Raises `ArgumentError`
    with the reasons of the variants that came closest, or what must be said to choose one.
    """
    operator = parts[0].table.name
    fitting: list[Found] = []
    reasons: list[Mismatch] = []
    for part in on_device(parts, given.tensors):
        for variant in part.table.variants:
            reason = _mismatch(variant, given)
            if reason is None:
                fitting.append((part, variant))
            else:
                reasons.append(reason)
    if not fitting:
        raise ArgumentError(f"{operator}: {closest(reasons)}")
    telling = [name for name in given.at if len({_shape_of(v, name) for _, v in fitting}) > 1]
    if telling:
        fitting = _of_shape(operator, fitting, given, telling)
    first = fitting[0][0]
    mine = [variant for part, variant in fitting if part is first]
    if len(mine) > 1:
        raise ambiguous(operator, mine)
    return fitting[0], tuple(given.at[name] for name in telling)


def on_device(parts: Sequence[Part], tensors: Mapping[str, Any]) -> Sequence[Part]:
    """Return the libraries for the device of a call's tensors, where there are several kinds.

    Raises `ArgumentError` where none is for it. Of one kind all are returned: their own check says
    which tensor is elsewhere.
    """
    kinds = list(dict.fromkeys(part.kind for part in parts))
    if len(kinds) == 1 or not tensors:
        return parts
    name, tensor = next(iter(tensors.items()))
    if found := [part for part in parts if part.kind == device_kind(tensor)]:
        return found
    operator = parts[0].table.name
    raise ArgumentError(
        f"{operator}: {name} is on {device_kind(tensor)}; expected {' or '.join(kinds)}"
    )


def ambiguous(operator: str, variants: Sequence[Variant]) -> ArgumentError:
    """Say which fields decide between variants that take the same tensors."""
    problems = [variant.problem for variant in variants]
    names = differing(problems)
    choices = " or ".join(dict.fromkeys(as_text(problem, names) for problem in problems))
    return ArgumentError(
        f"{operator}: {len(variants)} variants of this library take such tensors; say which by "
        f"name: {choices}"
    )


def field_mismatch(variant: Variant, fields: Mapping[str, Any]) -> Mismatch | None:
    """Say which given field a variant does not have."""
    for name, value in fields.items():
        if not same_value(variant.problem[name], value):
            return Mismatch(_FIELDS, f"{name} is {value}", as_text(variant.problem, (name,)))
    return None


def _mismatch(variant: Variant, given: Given) -> Mismatch | None:
    """Say why a variant cannot take a call; None where it can, but for shapes."""
    return (
        field_mismatch(variant, given.fields)
        or _packed_mismatch(variant, given.packed)
        or _input_mismatch(variant, given.tensors)
        or _data_mismatch(variant, given.packed)
    )


def _packed_mismatch(variant: Variant, packed: Packed | None) -> Mismatch | None:
    names = variant.names("packed")
    if (packed is None) != (not names):
        expected = "what .pack() returns" if names else "none"
        return Mismatch(_PACKED, "packed data is missing", expected)
    if packed is not None and packed.shared != variant.data:
        return Mismatch(_DATA, f"no kernel reads {packed!r}", variant.data)
    if packed is not None and packed.layout != variant.layout:
        return Mismatch(
            _LAYOUT,
            f"the packed data has layout {packed.layout}, the kernels of this library read "
            f"{variant.layout}: pack the weights again with this library's .pack()",
        )
    return None


def _input_mismatch(variant: Variant, tensors: Mapping[str, Any]) -> Mismatch | None:
    expected = [a for a in variant.arguments if a.role in ("input", "state")]
    for at, argument in enumerate(expected, start=_INPUTS):
        name = argument.name
        if name not in tensors:
            return Mismatch(at, f"{name} is missing", _described(argument))
        if (given := dtype_name(tensors[name])) != argument.dtype:
            return Mismatch(at, f"{name} is {given}", argument.dtype)
    if unknown := sorted(set(tensors) - {a.name for a in expected}):
        at = _INPUTS + len(expected)
        return Mismatch(at, f"{unknown[0]} is given, but these kernels take none")
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
            return Mismatch(_LAST, f"packed {name} has shape {shape}", _described(argument))
    return None


def _shape_of(variant: Variant, name: str) -> tuple[int | str, ...]:
    argument = variant.argument(name)
    return argument.shape if argument is not None else ()


def _of_shape(
    operator: str, fitting: Sequence[Found], given: Given, names: Sequence[str]
) -> list[Found]:
    """Return those that take the shapes of these tensors."""
    found: list[Found] = []
    reasons: list[Mismatch] = []
    for part, variant in fitting:
        for at, name in enumerate(names):
            argument, shape = variant.argument(name), given.tensors[name].shape
            if argument is not None and not same_shape(shape, argument.shape):
                expected = _described(argument)
                reasons.append(Mismatch(at, f"{name} has shape {list(shape)}", expected))
                break
        else:
            found.append((part, variant))
    if not found:
        raise ArgumentError(f"{operator}: {closest(reasons)}")
    return found


def _described(argument: Argument) -> str:
    return f"[{', '.join(map(str, argument.shape))}] {argument.dtype}"
