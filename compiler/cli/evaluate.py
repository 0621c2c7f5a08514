"""``wattune evaluate-model``: how good the cost model is on a database's records."""

from __future__ import annotations

from typing import Any

import click

from wattune.compiler.cli.options import json_option
from wattune.compiler.cli.output import print_json, print_table
from wattune.cost_models.base import model_names
from wattune.cost_models.evaluate import LEAST_HELD_OUT, summary
from wattune.errors import DatabaseError

_COLUMNS = {
    "pairwise": "pairs right",
    "spearman": "Spearman",
    "peak_at_5": "peak@5",
    "regret_at_5": "regret@5",
    "within_1": "in 1 sigma",
    "within_2": "in 2 sigma",
    "nll": "NLL",
    "energy_skill": "energy skill",
}


@click.command("evaluate-model")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--model",
    type=click.Choice(model_names()),
    default="xgboost",
    show_default=True,
    help="The cost model.",
)
@click.option(
    "--train",
    "sizes",
    type=click.IntRange(min=0),
    multiple=True,
    default=(64, 256),
    show_default=True,
    help="Candidates of a problem to train on; repeatable.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Random splits."
)
@click.option(
    "--transfer", is_flag=True, help="Let it learn from the records of other problems as well."
)
@click.option("--mode", type=click.Choice(["cold", "hot"]), help="[default: each for itself]")
@json_option
def evaluate_model_command(
    files: tuple[str, ...],
    model: str,
    sizes: tuple[int, ...],
    seeds: int,
    transfer: bool,
    mode: str | None,
    as_json: bool,
) -> None:
    """Train a cost model on some records of FILES and compare it with the others.

    FILES: databases, and whatever else `wattune replay` reads. Nothing is measured. Of pairs only
    those count that differ by more than two standard errors.
    """
    from wattune.compiler.accuracy import judge, read_evidence

    evidence = read_evidence(files, mode)
    rows: list[dict[str, Any]] = []
    for train in sizes:
        trials = judge(evidence, model, train, seeds, transfer)
        rows += [{"train": train, **row} for row in summary(trials)]
    if not rows:
        raise DatabaseError(
            f"no problem has {min(sizes)} candidates to train on and {LEAST_HELD_OUT} more to "
            "test; tune longer, or train on fewer"
        )
    if as_json:
        print_json({"model": model, "transfer": transfer, "seeds": seeds, "problems": rows})
        return
    print_table(
        ["problem", ">trained", ">held out", *(f">{title}" for title in _COLUMNS.values())],
        [
            [row["name"], row["trained"], row["held_out"], *(_figure(row[n]) for n in _COLUMNS)]
            for row in rows
        ],
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
