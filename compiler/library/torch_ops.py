"""Custom torch operators, ``torch.ops.wattune.<operator>``: for torch.compile and export.

    ternary_gemm(Tensor x, Tensor? x_scale=None, Tensor? weight=None, Tensor? weight_scale=None,
                 *, str layout="") -> Tensor

Packed data comes by name: ``torch.ops.wattune.ternary_gemm(x, **packed.torch)``. An operator is
defined once a process; the libraries loaded last are tried first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from wattune.compiler.library.binding import Part
from wattune.compiler.library.frameworks import dtype_name, same_shape, tidy
from wattune.compiler.library.manifest import OperatorTable, Variant
from wattune.compiler.library.packed import Packed
from wattune.errors import ArgumentError

if TYPE_CHECKING:
    from wattune.compiler.library.entry import Entry

Tensors = dict[str, Any]

_parts: dict[str, list[Part]] = {}
# torch.library has no type annotations.
_fragment: Any = torch.library.Library("wattune", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(entry: Entry) -> None:
    """Make ``torch.ops.wattune.<operator>`` call this entry's libraries first."""
    if entry.name not in _parts:
        _define(entry.parts[0].table)
    _parts[entry.name] = [*entry.parts, *_parts.get(entry.name, [])]


def _roles(table: OperatorTable) -> dict[str, str]:
    """Return the role of every argument; of one that no variant has only that it is a tensor."""
    known = {a.name: a.role for v in table.variants for a in v.arguments}
    return {name: known.get(name, "input") for name in table.signature}


def schema(table: OperatorTable) -> str:
    """Return the operator's signature in torch's notation, the same for all libraries."""
    roles = _roles(table)
    parameters: list[str] = []
    for name in given_names(table):
        kind = f"Tensor(a{len(parameters)}!)" if roles[name] == "state" else "Tensor"
        parameters.append(f"{kind}? {name}=None" if parameters else f"{kind} {name}")
    outputs = ["Tensor"] * list(roles.values()).count("output")
    returned = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    return f'{table.name}({", ".join(parameters)}, *, str layout="") -> {returned}'


def given_names(table: OperatorTable) -> tuple[str, ...]:
    """Name the arguments that torch gives: all but workspaces and outputs."""
    roles = _roles(table)
    return tuple(n for n in table.signature if roles[n] not in ("workspace", "output"))


def _define(table: OperatorTable) -> None:
    names = given_names(table)
    _fragment.define(schema(table), tags=(torch.Tag.pt2_compliant_tag,))

    def compute(*inputs: Any, layout: str = "", **data: Any) -> Any:
        tensors = _given(names, inputs, data)
        part, variant = _find(table.name, tensors, layout)
        results = _allocate(variant, tensors)
        _call(part, variant, {**tensors, **results})
        return _returned(results)

    def fake(*inputs: Any, layout: str = "", **data: Any) -> Any:
        tensors = _given(names, inputs, data)
        _, variant = _find(table.name, tensors, layout)
        return _returned(_allocate(variant, tensors))

    _fragment.impl(table.name, compute, "CPU")
    torch.library.register_fake(f"wattune::{table.name}", fake, lib=_fragment)


def _given(names: Sequence[str], inputs: Sequence[Any], data: Mapping[str, Any]) -> Tensors:
    found = {**dict(zip(names, inputs, strict=False)), **data}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _find(operator: str, tensors: Tensors, layout: str) -> tuple[Part, Variant]:
    """Return the variant that takes exactly these tensors."""
    for part in _parts[operator]:
        for variant in part.table.variants:
            if variant.layout == layout and _takes(variant, tensors):
                return part, variant
    given = ", ".join(f"{n} {list(t.shape)} {dtype_name(t)}" for n, t in tensors.items())
    raise ArgumentError(
        f"torch.ops.wattune.{operator}: no loaded library serves {given} in layout {layout!r}; "
        "pass **packed.torch of a Packed that such a library packed"
    )


def _takes(variant: Variant, tensors: Tensors) -> bool:
    expected = {a.name: a for a in variant.arguments if a.role not in ("output", "workspace")}
    return expected.keys() == tensors.keys() and all(
        dtype_name(tensors[name]) == argument.dtype
        and same_shape(tensors[name].shape, argument.shape)
        for name, argument in expected.items()
    )


def _allocate(variant: Variant, tensors: Tensors) -> Tensors:
    sizes = {
        dim: tensors[a.name].shape[i]
        for a in variant.arguments
        if a.name in tensors
        for i, dim in enumerate(a.shape)
        if isinstance(dim, str)
    }
    like = next(iter(tensors.values()))
    return {
        a.name: like.new_empty(a.concrete(sizes), dtype=getattr(torch, a.dtype))
        for a in variant.arguments
        if a.role == "output"
    }


def _returned(results: Tensors) -> Any:
    values = tuple(results.values())
    return values[0] if len(values) == 1 else values


def _call(part: Part, variant: Variant, tensors: Tensors) -> None:
    from wattune.compiler.library.entry import LayoutError

    signature = part.table.signature
    try:
        part.call(*(tensors.get(name) for name in signature))
    except LayoutError:
        copies = {name: tidy(tensors[name]) for name in variant.names("input")}
        part.call(*({**tensors, **copies}.get(name) for name in signature))


def call_in_graph(
    operator: str, names: Sequence[str], tensors: Sequence[Any], named: Mapping[str, Any], out: Any
) -> Any:
    """Serve an entry's call while torch.compile traces it, through the custom operator."""
    data = [tensor for tensor in tensors if isinstance(tensor, Packed)]
    given = [tensor for tensor in tensors if not isinstance(tensor, Packed)]
    inputs = {**dict(zip(names, given, strict=False)), **named}
    packed = data[0].torch if data else {}
    result = getattr(torch.ops.wattune, operator)(**inputs, **packed)
    return result if out is None else out.copy_(result)
