"""Order pairs by expert: the first phase of every kernel. It is exact, stable and serial.

order expert:  count, then prefix sums, then place; a job for each expert that has pairs
order pair:    a job for each pair
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.grouped_gemm.plan import JOB, Lists, Plan

Expr = Any
JOBS, POSITIONS = 0, 1
ELSEWHERE = -1


def emit_route(plan: Plan, lists: Lists, ids: Any, pairs: Expr) -> None:
    """Fill the lists from ``ids``, one row of ``pairs`` experts."""
    if plan.order == "pair":
        _by_pair(lists, ids, pairs)
    else:
        _by_expert(plan, lists, ids, pairs)


def _add_job(lists: Lists, jobs: Any, expert: Expr, first: Expr, count: Expr) -> None:
    for i, value in enumerate((expert, first, count)):
        lists.store("jobs", jobs[0] * JOB + i, value)
    vector.store(jobs, [0], jobs[0] + 1)


def _finish(lists: Lists, jobs: Any, used: Any) -> None:
    lists.store("counts", JOBS, jobs[0])
    lists.store("counts", POSITIONS, used[0])


def _counters() -> tuple[Any, Any]:
    found = vector.array(1, "int32"), vector.array(1, "int32")
    for counter in found:
        vector.store(counter, [0], T.int32(0))
    return found


def _by_pair(lists: Lists, ids: Any, pairs: Expr) -> None:
    jobs, used = _counters()
    with T.serial(pairs) as pair:
        expert = T.bind(ids[pair])
        with T.If(expert < 0):
            with T.Then():
                lists.store("position", pair, T.int32(ELSEWHERE))
            with T.Else():
                lists.store("position", pair, used[0])
                lists.store("pair", used[0], pair)
                _add_job(lists, jobs, expert, used[0], T.int32(1))
                vector.store(used, [0], used[0] + 1)
    _finish(lists, jobs, used)


def _by_expert(plan: Plan, lists: Lists, ids: Any, pairs: Expr) -> None:
    jobs, used = _counters()
    with T.serial(plan.experts) as expert:
        lists.store("cursor", expert, T.int32(0))
    with T.serial(pairs) as pair:
        expert = T.bind(ids[pair])
        with T.If(expert >= 0), T.Then():
            lists.store("cursor", expert, lists.load("cursor", expert) + 1)
    with T.serial(plan.experts) as expert:
        count = T.bind(lists.load("cursor", expert))
        with T.If(count > 0), T.Then():
            _add_job(lists, jobs, expert, used[0], count)
            lists.store("cursor", expert, used[0])
            vector.store(used, [0], used[0] + count)
    with T.serial(pairs) as pair:
        expert = T.bind(ids[pair])
        with T.If(expert < 0):
            with T.Then():
                lists.store("position", pair, T.int32(ELSEWHERE))
            with T.Else():
                place = T.bind(lists.load("cursor", expert))
                lists.store("position", pair, place)
                lists.store("pair", place, pair)
                lists.store("cursor", expert, place + 1)
    _finish(lists, jobs, used)
