"""What a library serves: sizes, dtypes and buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.compiler.library.manifest import Kernel, OperatorTable, Variant
from wattune.compiler.library.variants import as_text, same_value
from wattune.errors import UnknownNameError


def covers(table: OperatorTable, fields: Mapping[str, Any]) -> bool:
    """Say whether some variant serves a problem with these fields."""
    allowed = {name for variant in table.variants for name in variant.problem} - {"operator"}
    for name in fields:
        if name not in allowed and name not in table.runtime:
            raise UnknownNameError(f"field of {table.name}", name, {*allowed, *table.runtime})
    return any(_serves(table, variant, fields) for variant in table.variants)


def _serves(table: OperatorTable, variant: Variant, fields: Mapping[str, Any]) -> bool:
    static = {name: value for name, value in fields.items() if name not in table.runtime}
    if not all(same_value(variant.problem[name], value) for name, value in static.items()):
        return False
    sizes = {name: fields[name] for name in table.runtime if name in fields}
    if any(value < 0 for value in sizes.values()):
        return False
    # Calls are cut along the first run-time size; kernels serve open-ended ones of any size.
    limited = set(sizes) - {table.runtime[0], *table.open_ended} if sizes else set()
    return any(all(sizes[n] <= k.upper[n] for n in limited) for k in variant.kernels)


def bucket_ends(table: OperatorTable) -> dict[str, tuple[Any, ...]]:
    """Return the upper ends of the buckets of each variant, by its fields.

    An end is a number where there is one run-time size, else a tuple in the order of ``runtime``.
    """
    if not table.runtime:
        return {}
    found: dict[str, tuple[Any, ...]] = {}
    for variant in table.variants:
        ends = [tuple(kernel.upper[name] for name in table.runtime) for kernel in variant.kernels]
        found[describe(variant)] = tuple(end if len(end) > 1 else end[0] for end in ends)
    return found


def describe(variant: Variant) -> str:
    """Return a variant's fields as one line."""
    return as_text(variant.problem, _named(variant.problem))


def _named(problem: Mapping[str, Any]) -> list[str]:
    return [name for name, value in problem.items() if name != "operator" and value != ""]


def largest_workspace(table: OperatorTable) -> int:
    """Return the bytes of the largest workspace of any kernel."""
    return max(map(variant_workspace, table.variants), default=0)


def variant_workspace(variant: Variant) -> int:
    """Return the bytes of the largest workspace of a variant's kernels."""
    return max((workspace_bytes(variant, kernel) for kernel in variant.kernels), default=0)


def workspace_bytes(variant: Variant, kernel: Kernel) -> int:
    """Return the bytes of a kernel's workspace, 0 where it has none."""
    names = variant.names("workspace")
    argument = variant.argument(names[0]) if names else None
    return argument.concrete(kernel.sizes)[0] if argument is not None else 0
