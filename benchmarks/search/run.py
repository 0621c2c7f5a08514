"""Search efficiency: all strategies and peers on all recorded spaces, in one table.

    make bench-search                      # or: python -m benchmarks.search.run --seeds 20
    python -m benchmarks.search.run --strategy bayesian --known FILE    # the others from FILE

Every run is kept in `.bench-search/`: a stopped benchmark goes on, and a changed strategy is run
again with `--again NAME`. Nothing is timed but the strategies themselves, so that it does not
matter what else the machine does, except for the column of seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.search.runs import (
    Kept,
    Run,
    fits,
    own_strategies,
    run,
    space,
    space_names,
    strategies,
)
from benchmarks.search.summary import against, overall, row

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.cli.output import duration, print_table
from wattune.schedules.target import Target

KEPT = Path(".bench-search")


def main() -> None:
    """Run what is not kept yet, and print and write the table."""
    given = _arguments()
    kept = Kept(KEPT, given.budget, given.batch)
    names = given.strategy or (own_strategies() if given.known else strategies())
    jobs = [
        (space, name, seed)
        for seed in range(given.seeds)
        for space in given.space or space_names()
        for name in names
        if fits(space, name) and (name in given.again or kept.get(space, name, seed) is None)
    ]
    _run_all(jobs, given, kept)
    rows = [
        row(runs, given.budget)
        for space in given.space or space_names()
        for name in names
        if len(runs := _runs(kept, space, name, given.seeds)) == given.seeds
    ]
    if given.known:
        rows += _known_rows(given, rows)
    if not rows:
        print("nothing is complete yet: the same command goes on")
        return
    _show(rows, given.budget)
    if given.json:
        _write(rows, given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=220, help="distinct evaluations")
    parser.add_argument("--batch", type=int, default=1, help="asked for at once, ours and Optuna's")
    parser.add_argument("--known", type=Path, help="a table: rows that are not run come from it")
    parser.add_argument("--strategy", action="append", help="only this; repeatable")
    parser.add_argument("--space", action="append", choices=space_names(), help="repeatable")
    parser.add_argument("--again", action="append", default=[], help="run this strategy anew")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="before it stops")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the table here")
    return parser.parse_args()


def _run_all(jobs: list[tuple[str, str, int]], given: argparse.Namespace, kept: Kept) -> None:
    """Run jobs in processes and keep each run as it comes, until the time is up."""
    end = time.monotonic() + 60 * given.minutes
    # One thread each: libraries would start as many as there are cores.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    todo = iter(jobs)
    with ProcessPoolExecutor(given.processes) as pool:
        first = islice(todo, given.processes)
        waiting = {pool.submit(_run, job, given.budget, given.batch) for job in first}
        while waiting:
            done = next(as_completed(waiting))
            waiting.remove(done)
            found = done.result()
            kept.put(found)
            print(f"{found.space} {found.strategy} {found.seed}", flush=True)
            if time.monotonic() < end and (job := next(todo, None)) is not None:
                waiting.add(pool.submit(_run, job, given.budget, given.batch))


def _run(job: tuple[str, str, int], budget: int, batch: int) -> Run:
    space, strategy, seed = job
    return run(space, strategy, seed, budget, batch)


def _runs(kept: Kept, space: str, name: str, seeds: int) -> list[Run]:
    return [found for seed in range(seeds) if (found := kept.get(space, name, seed)) is not None]


def _known_rows(given: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table's rows of the spaces asked for, but those that are here anew."""
    table = json.loads(given.known.read_text())
    if (table.get("budget"), table.get("batch")) != (given.budget, given.batch):
        raise SystemExit(f"{given.known} is no table of this budget and batch")
    wanted = given.space or space_names()
    anew = {(found["space"], found["strategy"]) for found in rows}
    return [
        found
        for found in table["rows"]
        if found["space"] in wanted and (found["space"], found["strategy"]) not in anew
    ]


def is_peer(name: str) -> bool:
    """Say whether a strategy is not one of ours."""
    return name not in own_strategies()


def _write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    result = {
        "machine": describe_machine(Target.native()),
        "budget": given.budget,
        "batch": given.batch,
        "rows": rows,
        "overall": {kind: overall(some, given.budget) for kind, some in _by_device(rows).items()},
        "against_best_peer": against(rows, is_peer),
    }
    given.json.write_text(json.dumps(result, indent=1) + "\n")


def _show(rows: list[dict[str, Any]], budget: int) -> None:
    steps = list(rows[0]["regret"])
    regrets = [f">regret at {step}" for step in steps]
    columns = ["space", "strategy", ">seeds", ">to 5 %", ">reached", *regrets]
    lines = [
        [
            r["space"],
            r["strategy"],
            r["seeds"],
            _count(r["evaluations_to_5%"], budget),
            f"{r['reached']:.0%}",
            *(_percent(r["regret"][step]) for step in steps),
            duration(r["seconds_per_evaluation"]),
        ]
        for r in rows
    ]
    print_table([*columns, ">time"], lines, "medians [95 % interval of the median]")
    for kind, some in _by_device(rows).items():
        _show_overall(overall(some, budget), kind, steps)
    for found in against(rows, is_peer):
        print(
            f"{found['strategy']} against the best peer of each space and step: "
            f"{found['wins']} wins, {found['ties']} ties, {found['losses']} losses"
        )


def _by_device(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the spaces of each kind of device: large ones of GPUs, small of CPUs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        found.setdefault(space(each["space"]).target.kind, []).append(each)
    return found


def _show_overall(found: list[dict[str, Any]], kind: str, steps: list[str]) -> None:
    lines = [
        [
            r["strategy"],
            r["spaces"],
            f"{'>= ' if r['at_least'] else ''}{r['evaluations_to_5%']:.0f}",
            *("-" if v is None else f"{v:.1%}" for v in r["regret"].values()),
        ]
        for r in found
    ]
    print_table(
        ["strategy", ">spaces", ">to 5 %", *(f">regret at {s}" for s in steps)],
        lines,
        f"over spaces of {kind}: geometric mean of the medians to 5 %, mean of the median regrets",
    )


def _count(figure: dict[str, float | None], budget: int) -> str:
    low, middle, high = (
        f">{budget}" if figure[name] is None else f"{figure[name]:g}"
        for name in ("low", "median", "high")
    )
    return f"{middle} [{low}, {high}]"


def _percent(figure: dict[str, float | None]) -> str:
    low, middle, high = (
        "-" if (value := figure[name]) is None else f"{value:.1%}"
        for name in ("low", "median", "high")
    )
    return f"{middle} [{low}, {high}]"


if __name__ == "__main__":
    main()
