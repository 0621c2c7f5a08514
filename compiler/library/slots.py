"""Write arguments and kernels of a variant as rows of the tables in dispatch.c."""

from __future__ import annotations

from collections.abc import Sequence

from wattune.compiler.library.coverage import workspace_bytes
from wattune.compiler.library.manifest import OperatorTable, Variant
from wattune.ops.operator import Argument, Limit, Used, Values
from wattune.schedules.program import CACHE_LINE, alignment

# No limit: the greatest int64.
_NONE = (1 << 63) - 1
# DLPack's type codes.
_CODES = {"int": "kDLInt", "uint": "kDLUInt", "float": "kDLFloat", "bfloat": "kDLBfloat"}


def slot(argument: Argument | None, op: OperatorTable | None = None, kind: str = "cpu") -> str:
    """Return one WtSlot for kernels of a target kind; symbol i is written as ~i."""
    if argument is None:
        return '{WT_ABSENT, {0, 0, 0}, 0, 1, 0, {0}, 0, "none"}'
    symbols = op.symbols if op else ()
    code = argument.dtype.rstrip("0123456789")
    dtype = f"{{{_CODES[code]}, {argument.dtype[len(code) :]}, 1}}"
    dims = [f"~{symbols.index(d)}" if d in symbols else _number(d) for d in argument.shape]
    shape = ", ".join(map(str, argument.shape))
    role, aligned = "WT_" + argument.role.upper(), slot_alignment(argument, kind)
    return (
        f"{{{role}, {dtype}, {len(dims)}, {aligned}, {int(argument.written)}, "
        f"{{{', '.join(dims) or '0'}}}, {_values(argument.values, op)}, "
        f'"[{shape}] {argument.dtype}"}}'
    )


def _values(values: Values | None, op: OperatorTable | None) -> str:
    if values is None:
        return "0"
    symbols, signature = (op.symbols, op.signature) if op else ((), ())
    used = values.used or Used("")
    numbers = (
        values.low,
        _limit(values.high, symbols),
        _limit(_NONE if values.also is None else values.also, symbols),
        int(values.unique),
        symbols.index(values.maximum) if values.maximum else -1,
        signature.index(used.lengths) if used.lengths else -1,
        used.per,
    )
    return f"&(const WtValues){{{', '.join(map(str, numbers))}}}"


def _limit(limit: int | Limit, symbols: Sequence[str]) -> str:
    found = limit if isinstance(limit, Limit) else Limit("", offset=limit)
    symbol = symbols.index(found.size) if found.size else -1
    return f"{{{found.offset}, {found.times}, {found.per}, {symbol}}}"


def _number(dim: int | str) -> str:
    # The bytes of a workspace depend on the bucket; runtime.c takes them from the kernel.
    return "0" if isinstance(dim, str) else str(dim)


def slot_alignment(argument: Argument, kind: str = "cpu") -> int:
    """Return the alignment that a kernel of a target kind was compiled for."""
    return CACHE_LINE if argument.role == "workspace" else alignment(argument, kind)


def extents(op: OperatorTable, variant: Variant) -> list[str]:
    """Return the WtExtents of a variant."""
    return [
        f"{{{op.symbols.index(name)}, {op.symbols.index(e.size)}, "
        f"{e.times}, {e.plus}, {e.per}, {e.each}}}"
        for name, found in variant.derived.items()
        for e in found
    ]


def kernel_rows(variant: Variant, op: OperatorTable) -> list[str]:
    """Return the WtKernels of a variant, smallest bucket first."""
    return [
        kernel_row(k.symbol, workspace_bytes(variant, k), [k.upper[name] for name in op.runtime])
        for k in variant.kernels
    ]


def kernel_row(symbol: str, workspace: int, upper: Sequence[int]) -> str:
    """Return one WtKernel."""
    return f"{{__tvm_ffi_{symbol}, {workspace}, {{{', '.join(map(str, upper)) or '0'}}}}}"
