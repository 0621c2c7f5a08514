"""``wattune replay``: search recorded data, to see what a strategy needs to find the best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import click

from wattune.compiler.cli.options import objective_option
from wattune.compiler.cli.output import duration, print_table, write_json
from wattune.compiler.search.strategy import strategy_names

# Evaluations after which the regret is shown.
_STEPS = (50, 100, 220)
_WITHIN = 0.05


@click.command("replay")
@click.argument("file")
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    default=("bayesian",),
    show_default=True,
    help=f"{', '.join(strategy_names())}; repeatable.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Distinct points to try, failures included.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs: 0, 1, ..."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Points that are asked for before any of them is measured.",
)
@click.option(
    "--transfer",
    "others",
    multiple=True,
    help="Another recording that is known before: another shape, operator or device; repeatable.",
)
@click.option("--problem", help="Which one of a database, as `wattune inspect` names it.")
@objective_option
@click.option("--json", "output", help="Write every run to this file; - is standard output.")
def replay_command(
    file: str,
    strategies: tuple[str, ...],
    budget: int,
    seeds: int,
    batch: int,
    others: tuple[str, ...],
    problem: str | None,
    objective: str,
    output: str | None,
) -> None:
    """Search FILE's measurements: a database, JSON lines, a table, Kernel Tuner's cache or T4."""
    from wattune.compiler.replay import Trace, read_recording, replay

    recorded = read_recording(file, problem)
    known = [read_recording(other) for other in others]
    traces: dict[str, list[Trace]] = {
        name: [
            replay(recorded, name, budget, seed, objective, batch, transfer=known)
            for seed in range(seeds)
        ]
        for name in dict.fromkeys(strategies)
    }
    if output is not None:
        write_json([trace.to_json() for mine in traces.values() for trace in mine], output)
    if output == "-":
        return
    steps = [step for step in _STEPS if step < budget] + [budget]
    columns = ["strategy", f">to within {_WITHIN:.0%}", ">reached"]
    columns += [f">regret at {step}" for step in steps]
    rows = [_row(name, mine, steps) for name, mine in traces.items()]
    title = f"{recorded}: {len(recorded.rows)} points; medians of {seeds} seeds"
    if known:
        title += f", knowing {', '.join(map(str, known))}"
    print_table([*columns, ">time per evaluation"], rows, title)


def _row(name: str, traces: Sequence[Any], steps: Sequence[int]) -> list[str]:
    """Return medians; a run that did not come near enough needs more than any that did."""
    needed = [trace.evaluations_to(_WITHIN) for trace in traces]
    middle = median(float("inf") if n is None else n for n in needed)
    return [
        name,
        "-" if middle == float("inf") else f"{middle:g}",
        f"{sum(n is not None for n in needed)}/{len(traces)}",
        *(f"{median(trace.regret_after(step) for trace in traces):.1%}" for step in steps),
        duration(median(s for trace in traces for s in trace.wall_seconds)),
    ]
