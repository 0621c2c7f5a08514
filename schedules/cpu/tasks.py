"""How templates for CPUs share work out among threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T


def spread(threads: int, tasks: Any, emit: Callable[[Any, Any], None]) -> None:
    """Emit ``emit(worker, task)`` for every task; a worker, below ``threads``, has its own scratch.

    Tasks go round the workers: neighbours cost about the same.
    """
    count = T.cast(tasks, "int32")
    if threads == 1:
        with T.serial(count) as task:
            emit(T.int32(0), task)
        return
    with T.parallel(threads) as worker, T.serial((count - worker + threads - 1) // threads) as step:
        emit(worker, worker + step * threads)


def ceildiv(value: Any, divisor: Any) -> Any:
    """Return the quotient of integers >= 0, rounded up."""
    return T.truncdiv(value + divisor - 1, divisor)
