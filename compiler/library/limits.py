"""What the generated dispatch cannot serve is refused when a library is planned."""

from __future__ import annotations

from wattune.compiler.library.manifest import OperatorTable, Variant
from wattune.errors import LibraryError
from wattune.ops.operator import Argument, Limit, Values

# As in runtime.h.
MAX_DIMS = 6
MAX_ARGUMENTS = 24
MAX_SIZES = 8


def check_limits(table: OperatorTable) -> None:
    """Raise `LibraryError` for arguments, sizes or values that the dispatch has no place for."""
    if len(table.signature) > MAX_ARGUMENTS or len(table.symbols) > MAX_SIZES:
        raise LibraryError(
            f"{table.name}: {len(table.signature)} arguments and {len(table.symbols)} sizes known "
            f"at run time; allowed: {MAX_ARGUMENTS} and {MAX_SIZES}"
        )
    for variant in table.variants:
        _check_variant(table, variant)


def _check_variant(table: OperatorTable, variant: Variant) -> None:
    if len(variant.names("workspace")) > 1:
        raise LibraryError(f"{table.name}: more than one workspace cannot be dispatched")
    last = [a.role == "output" for a in variant.arguments]
    if last != sorted(last):
        raise LibraryError(f"{table.name}: outputs must be the last arguments")
    known = {d for a in variant.arguments if a.role != "workspace" for d in a.shape}
    if table.runtime and table.runtime[0] not in known:
        raise LibraryError(
            f"{table.name}: calls are cut along {table.runtime[0]}, which is in no shape"
        )
    for argument in variant.arguments:
        if argument.role != "workspace":
            _check_shape(table, argument)
        if argument.values is not None:
            _check_values(table, variant, argument, argument.values)


def _check_shape(table: OperatorTable, argument: Argument) -> None:
    if len(argument.shape) > MAX_DIMS:
        raise LibraryError(f"{table.name}: {argument.name} has more than {MAX_DIMS} dimensions")
    if unknown := [d for d in argument.shape if isinstance(d, str) and d not in table.symbols]:
        raise LibraryError(f"{table.name}: {argument.name} has the unknown size {unknown[0]}")
    if table.runtime and table.runtime[0] in argument.shape[1:]:
        raise LibraryError(
            f"{table.name}: {argument.name} has shape {list(argument.shape)}; calls beyond the "
            f"last bucket are cut along {table.runtime[0]}, which must be the leading dimension"
        )


def _check_values(
    table: OperatorTable, variant: Variant, argument: Argument, values: Values
) -> None:
    """Refuse values that runtime.c cannot check: it would not notice."""
    shapes = {d for a in variant.arguments if a.role != "workspace" for d in a.shape}
    lengths = variant.argument(values.used.lengths) if values.used else None
    wrong = {
        "a dtype other than int8 and int32": argument.dtype not in ("int8", "int32"),
        "unique or measured int8 values": argument.dtype == "int8"
        and (values.unique or values.maximum),
        "a limit by a size that is in no shape": any(
            isinstance(limit, Limit) and limit.size not in shapes
            for limit in (values.high, values.also)
        ),
        "a maximum that is no run-time size, or in a shape too": values.maximum
        and (values.maximum not in table.runtime or values.maximum in shapes),
        "lengths that are not int32, one for each leading index": values.used
        and (lengths is None or lengths.dtype != "int32" or lengths.shape != argument.shape[:1]),
    }
    for what, found in wrong.items():
        if found:
            raise LibraryError(f"{table.name}: {argument.name} has {what}")
