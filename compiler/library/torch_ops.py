"""Custom torch operators, ``torch.ops.wattune.<operator>``: for torch.compile and export.

    ternary_gemm(Tensor x, Tensor? x_scale=None, Tensor? weight=None, Tensor? weight_scale=None,
                 *, int? out_features=None, ..., str layout="") -> Tensor
    kv_cache_append(Tensor k, Tensor? v=None, Tensor(a2!)? k_cache=None, ...) -> ()

Packed data comes by name: ``torch.ops.wattune.ternary_gemm(x, **packed.torch)``. Fields of the
problem choose between variants that take the same tensors; sizes that are the greatest value of a
tensor (``context``) may be bounded, as `Entry` explains. An operator is defined once a process;
the libraries loaded last are tried first. An operator with several outputs returns all of them: one
that the variant does not have is an empty tensor of booleans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from wattune.compiler.library.coverage import variant_workspace
from wattune.compiler.library.frameworks import dtype_name, same_shape, tidy
from wattune.compiler.library.manifest import OperatorTable, Variant
from wattune.compiler.library.matching import Part, ambiguous, field_mismatch, on_device
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.variants import is_dtype, is_field_value
from wattune.errors import ArgumentError
from wattune.ops.operator import derived_sizes

if TYPE_CHECKING:
    from wattune.compiler.library.entry import Entry

Tensors = dict[str, Any]

# Types of fields that torch's schemas have.
_KINDS = ("int", "float", "str", "bool")

_parts: dict[str, list[Part]] = {}
# torch.library has no type annotations.
_fragment: Any = torch.library.Library("wattune", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(entry: Entry) -> None:
    """Make ``torch.ops.wattune.<operator>`` call this entry's libraries first."""
    if entry.name not in _parts:
        _define(entry.parts[0].table)
    _parts[entry.name] = [*entry.parts, *_parts.get(entry.name, [])]


def schema(table: OperatorTable) -> str:
    """Return the operator's signature in torch's notation, the same for all libraries."""
    updated = {a.name for v in table.variants for a in v.arguments if a.updated}
    parameters: list[str] = []
    for name in given_names(table):
        kind = f"Tensor(a{len(parameters)}!)" if name in updated else "Tensor"
        parameters.append(f"{kind}? {name}=None" if parameters else f"{kind} {name}")
    options = [f"{table.fields[name]}? {name}=None" for name in field_names(table)]
    options += [f"SymInt? {name}=None" for name in table.measured]
    if _has_packed(table):
        options.append('str layout=""')
    outputs = ["Tensor"] * len(table.outputs)
    returned = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    parameters += ["*", *options] if options else []
    return f"{table.name}({', '.join(parameters)}) -> {returned}"


def given_names(table: OperatorTable) -> tuple[str, ...]:
    """Name the arguments that torch gives: all but workspaces and outputs."""
    workspaces = {name for variant in table.variants for name in variant.names("workspace")}
    return tuple(n for n in table.signature if n not in (*workspaces, *table.outputs))


def field_names(table: OperatorTable) -> tuple[str, ...]:
    """Name the fields that can be given: those that are not the name of a tensor too."""
    taken = {*given_names(table), *(("layout",) if _has_packed(table) else ())}
    return tuple(n for n, kind in table.fields.items() if kind in _KINDS and n not in taken)


def _has_packed(table: OperatorTable) -> bool:
    return any(variant.names("packed") for variant in table.variants)


def _define(table: OperatorTable) -> None:
    names, fields = given_names(table), field_names(table)
    _fragment.define(schema(table), tags=(torch.Tag.pt2_compliant_tag,))

    def find(inputs: Sequence[Any], data: Mapping[str, Any]) -> tuple[Part, Variant, Tensors]:
        tensors = {**dict(zip(names, inputs, strict=False)), **data}
        tensors = {name: tensors[name] for name in names if tensors.get(name) is not None}
        given = {name: data[name] for name in fields if data.get(name) is not None}
        layout = data.get("layout", "") if "layout" not in fields else ""
        return (*_find(table.name, tensors, layout, given), tensors)

    def compute(*inputs: Any, **data: Any) -> Any:
        part, variant, tensors = find(inputs, data)
        results = _allocate(variant, tensors)
        bounds = [data.get(name) for name in part.bounded]
        _call(part, variant, {**tensors, **results, **_workspace(part, variant, tensors)}, bounds)
        return _returned(table, tensors, results)

    def fake(*inputs: Any, **data: Any) -> Any:
        _, variant, tensors = find(inputs, data)
        return _returned(table, tensors, _allocate(variant, tensors))

    for key in ("CPU", "CUDA"):
        _fragment.impl(table.name, compute, key)
    torch.library.register_fake(f"wattune::{table.name}", fake, lib=_fragment)


def _find(
    operator: str, tensors: Tensors, layout: str, fields: Mapping[str, Any]
) -> tuple[Part, Variant]:
    """Return the variant that takes exactly these tensors, of the library loaded last."""
    for part in on_device(_parts[operator], tensors):
        found = [v for v in part.table.variants if _takes(v, tensors, layout, fields)]
        if len(found) > 1:
            raise ambiguous(operator, found)
        if found:
            return part, found[0]
    given = ", ".join(f"{n} {list(t.shape)} {dtype_name(t)}" for n, t in tensors.items())
    chosen = "".join(f", {name}={value}" for name, value in fields.items())
    hint = (
        f" in layout {layout!r}; pass **packed.torch of a Packed that such a library packed"
        if _has_packed(_parts[operator][0].table)
        else ""
    )
    raise ArgumentError(
        f"torch.ops.wattune.{operator}: no loaded library serves {given}{chosen}{hint}"
    )


def _takes(variant: Variant, tensors: Tensors, layout: str, fields: Mapping[str, Any]) -> bool:
    expected = {a.name: a for a in variant.arguments if a.role not in ("output", "workspace")}
    return (
        expected.keys() == tensors.keys()
        and (variant.layout == layout or not variant.names("packed"))
        and field_mismatch(variant, fields) is None
        and all(
            dtype_name(tensors[name]) == argument.dtype
            and same_shape(tensors[name].shape, argument.shape)
            for name, argument in expected.items()
        )
    )


def _allocate(variant: Variant, tensors: Tensors) -> Tensors:
    sizes = {
        dim: tensors[a.name].shape[i]
        for a in variant.arguments
        if a.name in tensors
        for i, dim in enumerate(a.shape)
        if isinstance(dim, str)
    }
    sizes.update(derived_sizes(variant.derived, sizes))
    like = next(iter(tensors.values()))
    return {
        a.name: like.new_empty(a.concrete(sizes), dtype=getattr(torch, a.dtype))
        for a in variant.arguments
        if a.role == "output"
    }


def _workspace(part: Part, variant: Variant, tensors: Tensors) -> Tensors:
    """Return the workspace of a call on a GPU, where the library has none of its own."""
    most = variant_workspace(variant) if part.kind != "cpu" else 0
    like = next(iter(tensors.values()))
    names = variant.names("workspace") if most else ()
    return {name: like.new_empty(most, dtype=torch.uint8) for name in names}


def _returned(table: OperatorTable, tensors: Tensors, results: Tensors) -> Any:
    """Return the outputs in the schema's number; a kernel has no output of booleans."""
    like = next(iter(tensors.values()))
    absent = (like.new_empty(0, dtype=torch.bool) for n in table.outputs if n not in results)
    values = [results[name] if name in results else next(absent) for name in table.outputs]
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _call(part: Part, variant: Variant, tensors: Tensors, bounds: Sequence[int | None]) -> None:
    from wattune.compiler.library.entry import LayoutError

    call, signature = part.functions[variant.entry], part.table.signature
    try:
        call(*(tensors.get(name) for name in signature), *bounds)
    except LayoutError:
        copies = {name: tidy(tensors[name]) for name in variant.names("input")}
        call(*({**tensors, **copies}.get(name) for name in signature), *bounds)


def call_in_graph(
    operator: str, names: Sequence[str], tensors: Sequence[Any], named: Mapping[str, Any], out: Any
) -> Any:
    """Serve an entry's call while torch.compile traces it, through the custom operator."""
    data = [tensor for tensor in tensors if isinstance(tensor, Packed)]
    given = [tensor for tensor in tensors if not isinstance(tensor, Packed)]
    free = [name for name in names if name not in named]
    inputs = dict(zip(free, given, strict=False))
    for name, value in named.items():
        if not is_field_value(value):
            inputs[name] = value
        elif name not in names:
            inputs[name] = str(value).removeprefix("torch.") if is_dtype(value) else value
        # Else a field like ``sinks``: whether the tensor of that name is there decides.
    packed = data[0].torch if data else {}
    results = getattr(torch.ops.wattune, operator)(**inputs, **packed)
    if not isinstance(results, tuple):
        return results if out is None or results is None else out.copy_(results)
    results = tuple([result for result in results if result.dtype != torch.bool])
    if out is not None:
        given_out = (out,) if isinstance(out, torch.Tensor) else out
        for place, result in zip(given_out, results, strict=True):
            place.copy_(result)
        return out
    return results if len(results) > 1 else results[0]
