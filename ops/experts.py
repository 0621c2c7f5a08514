"""What the operators of mixture-of-experts layers share: routing as inputs, rows of each expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ProblemError
from wattune.ops.dtypes import unit_roundoff
from wattune.ops.expert_weights import FORMATS, random_words
from wattune.ops.fields import error, integer, number, one_of
from wattune.ops.operator import Argument, Array, Operator, P, Problem, Tolerance, Values

_ROUTING_SEED = 20
# An expert's weights are one matrix, rolled by so many elements more than those before it.
_ROLL = 8191


@dataclass(frozen=True)
class ExpertsProblem(Problem):
    """Tokens, each routed to ``top_k`` of the experts; subclasses add the sizes of the weights.

    They also add ``dtype`` of activations and output, ``format`` of the weights (bf16, int8: a
    scale a row, or int4: scale and zero for each 128 columns) and ``skew`` of the routing that
    inputs are drawn with: the expert of rank r is as popular as (r + 1)^-skew.
    """

    runtime: ClassVar[tuple[str, ...]] = ("tokens",)
    # Sizes of outputs only, and those that products sum over.
    widths: ClassVar[tuple[str, ...]] = ()
    depths: ClassVar[tuple[str, ...]]

    tokens: int
    num_experts: int
    top_k: int

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("tokens", "num_experts", *self.widths):
            integer(self, name, 1)
        for name in self.depths:
            integer(self, name, 1, 1 << 16)
        integer(self, "top_k", 1, self.num_experts)
        one_of(self, "dtype", ("bfloat16", "float32"))
        one_of(self, "format", FORMATS)
        number(self, "skew")
        for name in self.depths:
            self._check_groups(name)

    def _check_groups(self, name: str) -> None:
        """Refuse a matrix whose rows are not whole groups of the format."""
        format: str = getattr(self, "format")  # noqa: B009
        group = FORMATS[format].group
        if getattr(self, name) % group:
            raise error(self, name, f"a multiple of {group} with format {format}")


def topk_ids(top_k: int, num_experts: int) -> Argument:
    """Return ``topk_ids``: the experts of each token, -1 for one that is elsewhere."""
    values = Values(-1, num_experts - 1, unique=True)
    return Argument("topk_ids", ("tokens", top_k), "int32", "input", values=values)


def weights(name: str, source: str, shape: tuple[int, int, int], format: str) -> Argument:
    """Return the packed weights of all experts; the source is [experts, rows, columns] coded."""
    coding, (count, rows, columns) = FORMATS[format], shape
    origin = Argument(source, (count, rows, coding.width(columns)), coding.dtype, "input")
    return Argument(name, (f"{name}_bytes",), "uint8", "packed", source=origin)


def weight_bytes(rows: int, columns: int, format: str) -> int:
    """Return the bytes of one expert's matrix."""
    return int(rows * columns * FORMATS[format].bits(columns)) // 8


def route(problem: Any) -> NDArray[np.int32]:
    """Draw experts for every token, the same at every call: `work` counts those that are touched.

    Expert of rank r is drawn with a probability like (r + 1)^-skew: 0 is uniform.
    """
    tokens, experts, top_k = problem.tokens, problem.num_experts, problem.top_k
    rng = np.random.default_rng((_ROUTING_SEED, tokens, experts, top_k))
    popularity = -problem.skew * np.log1p(rng.permutation(experts))
    # The largest of log p + Gumbel noise are a sample without repetition.
    keys = popularity + rng.gumbel(size=(tokens, experts))
    found: NDArray[np.int32] = np.argsort(-keys, -1)[:, :top_k].astype(np.int32)
    return found


def hard_routes(problem: Any, rng: np.random.Generator) -> NDArray[np.int32]:
    """Draw what kernels get wrong, a row after the other.

    Some experts elsewhere; the same first experts, so that one gets most of the tokens; all
    elsewhere; any.
    """
    ids = route(problem)
    for token, row in enumerate(ids):
        kind = token % 4
        if kind == 0:
            row[rng.random(len(row)) < 0.5] = -1
        elif kind == 1:
            row[:] = np.arange(len(row))
        elif kind == 2:
            row[:] = -1
    return ids


@cache
def touched(problem: Any) -> int:
    """Count the experts that `route` chooses."""
    return len(np.unique(route(problem)))


def make_weights(argument: Argument, columns: int, format: str, rng: np.random.Generator) -> Array:
    """Draw the source of weights, normal with variance 1 / columns: outputs are like inputs.

    Experts are the same matrix, each rolled by another distance: drawing gigabytes takes long.
    """
    assert argument.source is not None
    experts, rows, width = (int(size) for size in argument.source.shape)
    values = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
    first = FORMATS[format].encode(values)
    found = np.empty((experts, rows, width), first.dtype)
    for expert in range(experts):
        shift = expert * _ROLL % max(1, rows)
        found[expert] = np.roll(first, shift, axis=0)
        if expert % 2:
            found[expert] = found[expert, ::-1]
    return found


def poison_untouched(source: Array, ids: Array, format: str) -> None:
    """Make the weights of experts that no token chose NaN."""
    for expert in set(range(len(source))) - set(ids.ravel().tolist()):
        FORMATS[format].poison(source[expert])


def by_expert(ids: Array) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """Yield each expert that is here, the tokens that chose it and in which of their slots."""
    for expert in np.unique(ids[ids >= 0]).tolist():
        tokens, slots = np.nonzero(ids == expert)
        yield expert, tokens, slots


def product(rows: Array, source: Array, format: str) -> NDArray[np.float64]:
    """Return rows [n, columns] @ weights [outputs, columns]^T in float64, rows rounded first."""
    coding = FORMATS[format]
    return coding.activations(rows) @ coding.decode(source).T


class ExpertsOperator(Operator[P]):
    """What the operators of expert weights have in common."""

    def tolerance(self, problem: Any, output: str) -> Tolerance:
        """Return the tolerance of the output."""
        reason = (
            "outputs of about 1 at most are sums of products in float32, in any order; between the "
            "two products activations are rounded to bfloat16 or to 127 steps, where a last bit of "
            "float32 may decide: one step of one of them; the store rounds once"
        )
        return Tolerance(2 * unit_roundoff(problem.dtype) + 1e-4, 5e-3, reason)

    def random_bytes(self, problem: Any, argument: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Draw bytes that are finite weights in any layout."""
        return random_words(count, seed)

    def packed_share(self, problem: Any) -> float:
        """Return the share of the experts that are touched."""
        return touched(problem) / float(problem.num_experts)

    def formats(self) -> dict[str, float]:
        """Return bits per weight of each format, in long rows."""
        return {name: coding.bits(1 << 12) for name, coding in FORMATS.items()}

    def five_sizes(self, text: str, names: str, example: str) -> list[int]:
        """Read five numbers with an x between them."""
        parts = text.split("x")
        if len(parts) != 5 or not all(part.isdigit() for part in parts):
            raise ProblemError(
                f"{self.name}: shape {text!r}; allowed: {names}, for example {example}"
            )
        return [int(part) for part in parts]
