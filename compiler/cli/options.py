"""Options that several commands share, and how they become problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from wattune.compiler.models import (
    EXPERTS,
    KINDS,
    LayerProblem,
    Step,
    parse_buckets,
    problems_from_config,
    tokens_of,
)
from wattune.errors import ModelError, ProblemError
from wattune.ops import Problem, problem_from_json
from wattune.ops.kv_cache import LAYOUTS

F = TypeVar("F", bound=Callable[..., Any])

DATABASE = "tuned.sqlite"


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(
        command
    )


def target_options(command: F) -> F:
    """Add ``--target`` and ``--threads``."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), help="Threads of a kernel  [default: all cores]"
    )(command)
    return click.option(
        "--target",
        default="native",
        show_default=True,
        help="native, cpu:PROFILE, cuda:sm_NN or a JSON file.",
    )(command)


def database_option(command: F) -> F:
    """Add ``--db``."""
    return click.option(
        "--db", "database", default=DATABASE, show_default=True, help="Database of records."
    )(command)


def objective_option(command: F) -> F:
    """Add ``--objective``."""
    return click.option(
        "--objective",
        default="latency",
        show_default=True,
        help="latency, energy, edp, pareto or energy@5%.",
    )(command)


_SIZE = click.IntRange(min=1)
_PROBLEM_OPTIONS = (
    click.option("--model", help="Hugging Face config.json; its layers are the problems."),
    click.option(
        "--problem",
        "texts",
        multiple=True,
        help='A problem as JSON, such as {"operator": "ternary_gemm", "tokens": 1, '
        '"out_features": 2560, "in_features": 6912}, or the path of such a file; repeatable.',
    ),
    click.option(
        "--tokens",
        help="Token buckets of linear layers and their weights, such as 1:0.9,32:0.1  "
        "[default: batch x query tokens]",
    ),
    click.option(
        "--batch", default="1", show_default=True, help="Sequences decoded together; buckets too."
    ),
    click.option(
        "--query-tokens",
        type=_SIZE,
        default=1,
        show_default=True,
        help="Tokens of a sequence in one step, such as 4 to verify drafts.",
    ),
    click.option(
        "--context",
        help="Longest context, or buckets of contexts  [default: 32768, or what the model is made "
        "for]",
    ),
    click.option(
        "--attention",
        type=click.Choice(list(KINDS)),
        default="dense",
        show_default=True,
        help="How the model's attention layers without a window attend.",
    ),
    click.option(
        "--layout", type=click.Choice(LAYOUTS), default="HND", show_default=True, help="Of caches."
    ),
    click.option(
        "--page-size",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Tokens of a page of the cache; 0 is contiguous.",
    ),
    click.option(
        "--block-size",
        type=_SIZE,
        default=64,
        show_default=True,
        help="Keys of a block of sparse attention.",
    ),
    click.option(
        "--keep",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.1,
        show_default=True,
        help="Fraction that sparse attention keeps.",
    ),
    click.option(
        "--experts",
        type=click.Choice(EXPERTS),
        default="none",
        show_default=True,
        help="Format of the weights of mixture-of-experts layers; none leaves these layers out, "
        "which take gigabytes each.",
    ),
    click.option(
        "--skew",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="Of the routing to experts: the one of rank r is as popular as (r + 1)^-skew.",
    ),
)
_STEP = (
    *("query_tokens", "attention", "layout", "page_size", "block_size", "keep"),
    *("experts", "skew"),
)


def problem_options(command: F) -> F:
    """Add the options that say which problems are meant; the command gets a ``workload``.

    It is None where neither a model nor a problem is named.
    """

    @wraps(command)
    def with_workload(
        *,
        model: str | None,
        texts: tuple[str, ...],
        tokens: str | None,
        batch: str,
        context: str | None,
        **rest: Any,
    ) -> Any:
        step = Step(
            batch=parse_buckets(batch, "batch"),
            context=None if context is None else parse_buckets(context, "context"),
            tokens=None if tokens is None else parse_buckets(tokens),
            **{name: rest.pop(name) for name in _STEP},
        )
        layers = problems_from_config(model, step=step) if model else []
        if model and not layers:
            raise ModelError(
                f"{model}: no layer is asked for that has a kernel; allowed: another --attention "
                "than none, --experts bf16 for a mixture of experts"
            )
        layers += [LayerProblem(problem, 1, ()) for text in texts for problem in _problems(text)]
        return command(workload=Workload(tuple(layers)) if layers else None, **rest)

    wrapped: Any = with_workload
    for option in reversed(_PROBLEM_OPTIONS):
        wrapped = option(wrapped)
    found: F = wrapped
    return found


@dataclass(frozen=True)
class Workload:
    """What is asked for: a model's layers, or single problems of equal weight."""

    layers: tuple[LayerProblem, ...]

    @property
    def problems(self) -> list[Problem]:
        """Return the problems, each once."""
        return list(dict.fromkeys(layer.problem for layer in self.layers))

    @property
    def weights(self) -> dict[Problem, float]:
        """Return the weight of each problem's bucket."""
        return {layer.problem: layer.weight for layer in self.layers}

    @property
    def multiplicity(self) -> dict[Problem, int]:
        """Return how many layers have each problem."""
        counts: dict[Problem, int] = {}
        for layer in self.layers:
            counts[layer.problem] = counts.get(layer.problem, 0) + layer.multiplicity
        return counts

    @property
    def tokens(self) -> dict[Problem, int]:
        """Return how many tokens a step of each problem's bucket makes."""
        return {p.problem: p.tokens or tokens_of(p.problem) for p in self.layers}


def needed(workload: Workload | None) -> Workload:
    """Return the workload, or say how to name one."""
    if workload is None:
        raise click.UsageError("nothing to do: give --model config.json or --problem JSON")
    return workload


def _problems(text: str) -> list[Problem]:
    """Read ``--problem``: JSON, or a file that holds it; an object or a list of objects."""
    try:
        source = text if text.lstrip()[:1] in ("{", "[") else Path(text).read_text()
        data = json.loads(source)
    except OSError as error:
        raise ProblemError(f"problem {text!r}: neither JSON nor a file ({error})") from error
    except ValueError as error:
        raise ProblemError(f"problem {text!r}: not JSON: {error}") from error
    return [problem_from_json(item) for item in (data if isinstance(data, list) else [data])]
