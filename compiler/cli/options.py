"""Options that several commands share, and how they become problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from wattune.compiler.models import LayerProblem, parse_tokens, problems_from_config
from wattune.errors import ProblemError
from wattune.ops import Problem, problem_from_json

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
        help="latency, energy, edp or energy@5%.",
    )(command)


def problem_options(command: F) -> F:
    """Add the options that say which problems are meant."""
    sizes = click.IntRange(min=1)
    options = (
        click.option("--model", type=str, help="Hugging Face config.json; its layers are tuned."),
        click.option(
            "--problem",
            "texts",
            multiple=True,
            help='A problem as JSON, such as {"operator": "ternary_gemm", "tokens": 1, '
            '"out_features": 2560, "in_features": 6912}, or the path of such a file.',
        ),
        click.option(
            "--tokens",
            help="Token buckets and their weights, such as 1:0.9,32:0.1  "
            "[default: batch x query tokens]",
        ),
        click.option(
            "--batch", type=sizes, default=1, show_default=True, help="Sequences decoded together."
        ),
        click.option(
            "--query-tokens",
            type=sizes,
            default=1,
            show_default=True,
            help="Tokens of a sequence in one step.",
        ),
        click.option(
            "--context",
            type=sizes,
            default=32768,
            show_default=True,
            help="Longest context; linear layers do not depend on it.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Workload:
    """What is asked for: a model's layers, or single problems of equal weight."""

    layers: tuple[LayerProblem, ...]

    @classmethod
    def read(
        cls,
        model: str | None,
        texts: Sequence[str],
        tokens: str | None,
        batch: int,
        query_tokens: int,
    ) -> Workload:
        """Read the problem options; at least one of model and problem is needed."""
        buckets = {batch * query_tokens: 1.0} if tokens is None else parse_tokens(tokens)
        layers = problems_from_config(model, buckets) if model else []
        layers += [LayerProblem(problem, 1, ()) for text in texts for problem in _problems(text)]
        if not layers:
            raise click.UsageError("nothing to do: give --model config.json or --problem JSON")
        return cls(tuple(layers))

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
