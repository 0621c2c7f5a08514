"""What a decoding step of a model looks like, and how many tokens a problem is about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from wattune.compiler.models.buckets import normalised
from wattune.errors import ModelError
from wattune.ops import Problem

CONTEXT = 32768
ONE: Mapping[int, float] = {1: 1.0}


@dataclass(frozen=True)
class Step:
    """A decoding step: ``batch`` requests of ``query_tokens`` each, against ``context`` tokens.

    ``batch``, ``context`` and ``tokens`` are buckets and their shares of the steps. ``tokens`` are
    those of linear layers, None for batch x query tokens; ``context`` None is 32768, or what the
    model is made for where that is less. ``attention`` names a kind of `attention.KINDS`; the
    sparse kinds read ``keep`` of a request's blocks of ``block_size`` keys, or of its tokens.
    ``experts`` is the format of the weights of mixture-of-experts layers, which are left out with
    none; ``skew`` is that of their routing: the expert of rank r is as popular as (r + 1)^-skew.
    """

    batch: Mapping[int, float] = field(default_factory=lambda: ONE)
    context: Mapping[int, float] | None = None
    query_tokens: int = 1
    tokens: Mapping[int, float] | None = None
    attention: str = "dense"
    layout: str = "HND"
    page_size: int = 0
    block_size: int = 64
    keep: float = 0.1
    experts: str = "none"
    skew: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers; the problems check what they are given."""
        if not 0 < self.keep <= 1:
            raise ModelError(f"keep is {self.keep}; allowed: a fraction above 0, up to 1")
        if self.block_size < 1:
            raise ModelError(f"block size is {self.block_size}; allowed: an integer >= 1")

    def token_buckets(self) -> dict[int, float]:
        """Return the buckets of linear layers."""
        if self.tokens is not None:
            return normalised(self.tokens)
        batches = normalised(self.batch, "batch")
        return {batch * self.query_tokens: weight for batch, weight in batches.items()}

    def requests(self, most_context: int) -> dict[tuple[int, int], float]:
        """Return (batch, context) buckets of attention and their weights."""
        longest = min(CONTEXT, most_context or CONTEXT)
        contexts = {longest: 1.0} if self.context is None else self.context
        return {
            (batch, context): share * weight
            for batch, share in normalised(self.batch, "batch").items()
            for context, weight in normalised(contexts, "context").items()
        }

    def blocks(self, context: int) -> int:
        """Return how many blocks of a context are kept."""
        return math.ceil(self.keep * math.ceil(context / self.block_size))


def tokens_of(problem: Problem) -> int:
    """Return how many tokens a call of a problem is about: the step's, as far as it tells.

    Operators name the same things by the same names: ``tokens``, or ``batch`` and
    ``query_tokens``.
    """
    fields = problem.to_json()
    if "tokens" in problem.runtime:
        return int(fields["tokens"])
    return max(1, int(fields.get("batch", 1)) * int(fields.get("query_tokens", 1)))
