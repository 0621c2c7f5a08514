"""How templates for CPUs share work out among threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T


def spread(
    threads: int,
    tasks: Any,
    emit: Callable[[Any, Any], None],
    begin: Callable[[Any], None] = lambda worker: None,
    end: Callable[[], None] = lambda: None,
) -> None:
    """Emit ``emit(worker, task)`` for every task; a worker, below ``threads``, has its own scratch.

    Tasks go round the workers: neighbours cost about the same. ``begin(worker)`` and ``end()`` are
    emitted around the tasks of each worker.
    """
    count = T.cast(tasks, "int32")
    if threads == 1:
        begin(T.int32(0))
        with T.serial(count) as task:
            emit(T.int32(0), task)
        end()
        return
    with T.parallel(threads) as worker:
        begin(worker)
        with T.serial((count - worker + threads - 1) // threads) as step:
            emit(worker, worker + step * threads)
        end()


def ceildiv(value: Any, divisor: Any) -> Any:
    """Return the quotient of integers >= 0, rounded up."""
    return T.truncdiv(value + divisor - 1, divisor)
