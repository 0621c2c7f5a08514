"""``wattune model-cost``: what a model's mixture-of-experts layers read at each batch size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from wattune.compiler.cli.options import json_option
from wattune.compiler.cli.output import print_json, print_table
from wattune.compiler.models import MoeShape, model_from_config, moe_cost, parse_buckets
from wattune.errors import ModelError
from wattune.ops.expert_weights import FORMATS


@click.command("model-cost")
@click.argument("config")
@click.option(
    "--tokens", default="1,4,8,16,32,64,256", show_default=True, help="Tokens of a step, each."
)
@click.option(
    "--experts",
    type=click.Choice(list(FORMATS)),
    default="bf16",
    show_default=True,
    help="Format of the experts' weights.",
)
@click.option(
    "--skew",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Of the routing: the expert of rank r is as popular as (r + 1)^-skew.",
)
@click.option(
    "--gbps",
    type=click.FloatRange(min=0, min_open=True),
    help="Read bandwidth: adds the least milliseconds that the experts of all layers take.",
)
@json_option
def model_cost_command(
    config: str, tokens: str, experts: str, skew: float, gbps: float | None, as_json: bool
) -> None:
    """Show how many experts a step of so many tokens reads, and their bytes.

    CONFIG is a Hugging Face config.json with mixture-of-experts layers.
    """
    counts = tuple(parse_buckets(tokens))
    layers = Counter(model_from_config(config).moe.values())
    if not layers:
        raise ModelError(f"{config}: the model has no mixture-of-experts layers")
    found = [_layer(shape, number, counts, experts, skew, gbps) for shape, number in layers.items()]
    if as_json:
        print_json({"experts": experts, "skew": skew, "gbps": gbps, "layers": found})
        return
    for layer in found:
        _print(layer, experts, skew)


def _layer(
    shape: MoeShape,
    number: int,
    counts: tuple[int, ...],
    format: str,
    skew: float,
    gbps: float | None,
) -> dict[str, Any]:
    """Return what layers of one shape cost: ``bytes`` of one layer, ``step_bytes`` of all."""
    steps = []
    for cost in (moe_cost(shape, count, format, skew) for count in counts):
        all_bytes = cost.bytes * number
        step: dict[str, Any] = {
            "tokens": cost.tokens,
            "distinct_experts": cost.distinct,
            "rows_per_expert": cost.rows,
            "bytes": cost.bytes,
            "step_bytes": all_bytes,
        }
        if gbps is not None:
            step["least_ms"] = all_bytes / gbps / 1e6
        steps.append(step)
    sizes = ("num_experts", "top_k", "hidden_size", "intermediate_size")
    return {"layers": number, **{name: getattr(shape, name) for name in sizes}, "steps": steps}


def _print(layer: dict[str, Any], format: str, skew: float) -> None:
    title = (
        f"{layer['layers']} layers of {layer['num_experts']} experts, {layer['top_k']} a token, "
        f"{layer['hidden_size']} x {layer['intermediate_size']}, {format}, skew {skew:g}"
    )
    names = [">tokens", ">distinct experts", ">tokens each", ">GB a layer", ">GB a step"]
    rows = [_row(step) for step in layer["steps"]]
    if len(rows[0]) > len(names):
        names += [">least ms", ">ms a token"]
    print_table(names, rows, title)


def _row(step: dict[str, Any]) -> list[object]:
    cells: list[object] = [
        step["tokens"],
        f"{step['distinct_experts']:.1f}",
        f"{step['rows_per_expert']:.2f}",
        f"{step['bytes'] / 1e9:.3g}",
        f"{step['step_bytes'] / 1e9:.3g}",
    ]
    if "least_ms" in step:
        cells += [f"{step['least_ms']:.4g}", f"{step['least_ms'] / step['tokens']:.4g}"]
    return cells
