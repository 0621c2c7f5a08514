"""Merge attention states: combine outputs over disjoint sets of keys by their log-sum-exp.

FlashInfer's ``merge_states`` and vLLM's ``merge_attn_states``, with natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import attention_tolerance, sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import integer, one_of
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work


@dataclass(frozen=True)
class MergeStates(Problem):
    """out = sum_s exp(lse_s - lse) out_s, lse = log sum_s exp(lse_s), for each token and head.

    ``partial_out`` [tokens, states, heads, head_dim], ``partial_lse`` [tokens, states, heads]. A
    state with lse -inf (or +inf, as some libraries write for "empty") counts nothing, whatever its
    output holds; where all are empty the result is 0 and -inf.
    """

    operator: ClassVar[str] = "merge_states"
    runtime: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: int
    states: int
    heads: int
    head_dim: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("tokens", "states", "heads", "head_dim"):
            integer(self, name, 1)
        one_of(self, "dtype", FLOATS)


class MergeStatesOperator(Operator[MergeStates]):
    """The operator object of `MergeStates`."""

    name = "merge_states"
    summary = "combine attention outputs over disjoint keys by their log-sum-exp"
    problem = MergeStates

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("partial_out", "partial_lse", "out", "lse")

    def arguments(self, problem: MergeStates) -> tuple[Argument, ...]:
        """Describe every tensor."""
        states, heads, dim = problem.states, problem.heads, problem.head_dim
        return (
            Argument("partial_out", ("tokens", states, heads, dim), problem.dtype, "input"),
            Argument("partial_lse", ("tokens", states, heads), "float32", "input"),
            Argument("out", ("tokens", heads, dim), problem.dtype, "output"),
            Argument("lse", ("tokens", heads), "float32", "output"),
        )

    def make_inputs(self, problem: MergeStates, rng: np.random.Generator) -> dict[str, Array]:
        """Draw outputs and log-sum-exps of order one."""
        shape = (problem.tokens, problem.states, problem.heads)
        out = rng.standard_normal((*shape, problem.head_dim), dtype=np.float32)
        lse = rng.normal(0, 2, shape).astype(np.float32)
        return {"partial_out": round_to(out, problem.dtype), "partial_lse": lse}

    def verification_inputs(
        self, problem: MergeStates, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw empty states with poison in their outputs, some rows all empty, large values."""
        inputs = self.make_inputs(problem, rng)
        lse = inputs["partial_lse"]
        lse *= 40
        lse[rng.random(lse.shape) < 0.3] = -np.inf
        lse[rng.random(lse.shape) < 0.1] = np.inf
        if problem.tokens > 1:
            # A lone row must stay something that zeros cannot pass for.
            lse[0] = -np.inf
        else:
            lse[:, 0] = 1.0
        inputs["partial_out"][np.isinf(lse)] = np.nan
        return inputs

    def reference(self, problem: MergeStates, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Combine in float64."""
        lse = inputs["partial_lse"].astype(np.float64)
        empty = np.isinf(lse)
        top = np.where(empty, -np.inf, lse).max(1, keepdims=True)
        top = np.where(np.isinf(top), 0.0, top)
        weights = np.where(empty, 0.0, np.exp(np.where(empty, 0.0, lse - top)))
        total = weights.sum(1)
        out = np.where(empty[..., None], 0.0, inputs["partial_out"].astype(np.float64))
        merged = (weights[..., None] * out).sum(1) / np.where(total == 0, 1, total)[..., None]
        with np.errstate(divide="ignore"):
            found = top[:, 0] + np.log(total)
        return {"out": round_to(merged, problem.dtype), "lse": found.astype(np.float32)}

    def work(self, problem: MergeStates) -> Work:
        """Count a multiplication and an addition a value; everything moves once."""
        rows = problem.tokens * problem.heads
        values = rows * problem.states * problem.head_dim
        size = itemsize(problem.dtype)
        moved = size * (values + rows * problem.head_dim) + 4 * rows * (problem.states + 1)
        return Work(operations=2 * values, bytes=moved)

    def tolerance(self, problem: MergeStates, output: str) -> Tolerance:
        """Return that of attention."""
        return attention_tolerance(problem.dtype, output)

    def examples(self) -> tuple[MergeStates, ...]:
        """Return two states of a Llama-3.1-8B layer."""
        return (MergeStates(1, 2, 32, 128),)

    def parse_shape(self, text: str, **fields: Any) -> MergeStates:
        """Read ``TOKENSxSTATESxHEADSxHEAD_DIM``."""
        names = ("tokens", "states", "heads", "head_dim")
        return MergeStates(**sizes_of(self.name, names, text), **fields)


MERGE_STATES = MergeStatesOperator()
