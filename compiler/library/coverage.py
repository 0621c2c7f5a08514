"""What a library serves: sizes, dtypes and buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.compiler.library.manifest import Kernel, OperatorTable, Variant
from wattune.errors import UnknownNameError


def covers(table: OperatorTable, fields: Mapping[str, Any]) -> bool:
    """Say whether some variant serves a problem with these fields."""
    allowed = {name for variant in table.variants for name in variant.problem} - {"operator"}
    for name in fields:
        if name not in allowed and name not in table.runtime:
            raise UnknownNameError(f"field of {table.name}", name, {*allowed, *table.runtime})
    return any(_serves(table, variant, fields) for variant in table.variants)


def _serves(table: OperatorTable, variant: Variant, fields: Mapping[str, Any]) -> bool:
    for name, value in fields.items():
        if name not in table.runtime:
            # torch.float32 is float32.
            if variant.problem[name] != _plain(value):
                return False
        elif value < 0:
            return False
        elif name != table.runtime[0] and all(value > k.upper[name] for k in variant.kernels):
            # Calls are cut along the first run-time size only.
            return False
    return True


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else str(value).removeprefix("torch.")


def bucket_ends(table: OperatorTable) -> dict[str, tuple[int, ...]]:
    """Return the upper ends of the buckets of each variant, by its fields."""
    if not table.runtime:
        return {}
    first = table.runtime[0]
    return {
        describe(variant): tuple(kernel.upper[first] for kernel in variant.kernels)
        for variant in table.variants
    }


def describe(variant: Variant) -> str:
    """Return a variant's fields as one line."""
    return ", ".join(f"{k}={v}" for k, v in variant.problem.items() if k != "operator" and v != "")


def largest_workspace(table: OperatorTable) -> int:
    """Return the bytes of the largest workspace of any kernel."""
    return max((workspace_bytes(v, k) for v in table.variants for k in v.kernels), default=0)


def workspace_bytes(variant: Variant, kernel: Kernel) -> int:
    """Return the bytes of a kernel's workspace, 0 where it has none."""
    names = variant.names("workspace")
    argument = variant.argument(names[0]) if names else None
    return argument.concrete(kernel.sizes)[0] if argument is not None else 0
