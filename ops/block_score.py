"""Scores of key blocks: an upper bound of the mean query's product with any key of a block.

Sources: ReSA (arXiv 2506.04108); Quest (arXiv 2406.10774), whose bound it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import error, integer, number, one_of
from wattune.ops.gate_parts import SLOTS, block_count, lengths, ragged, scores, slots
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work


@dataclass(frozen=True)
class BlockScore(Problem):
    """scores[b, h, j] = sum_d max(m_d * k_min[b, h, j, d], m_d * k_max[b, h, j, d]).

    m is the mean over the group's query heads and over all ``query_tokens`` of q [batch,
    query_tokens, query_heads, head_dim], times ``scale`` (0: head_dim^-0.5). k_min is nowhere
    greater than k_max. Slots beyond a request's blocks score -inf. Blocks that are kept whatever
    they score (the last ones) are the business of `select_blocks`.
    """

    operator: ClassVar[str] = "block_score"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (SLOTS,)

    batch: int
    context: int
    query_heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    query_tokens: int = 1
    dtype: str = "bfloat16"
    scale: float = 0.0

    def __post_init__(self) -> None:
        """Check every field and fill what follows from others."""
        for name in ("batch", "context", "query_heads", "kv_heads", "head_dim"):
            integer(self, name, 1)
        for name in ("block_size", "query_tokens"):
            integer(self, name, 1)
        one_of(self, "dtype", FLOATS)
        number(self, "scale")
        if self.query_heads % self.kv_heads:
            raise error(self, "query_heads", f"a multiple of kv_heads ({self.kv_heads})")
        if not self.scale:
            object.__setattr__(self, "scale", self.head_dim**-0.5)

    @property
    def group(self) -> int:
        """Return how many query heads share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and the slots of the context."""
        return {**self.sizes, SLOTS: block_count(self.context, self.block_size)}


class BlockScoreOperator(Operator[BlockScore]):
    """The operator object of `BlockScore`."""

    name = "block_score"
    summary = "upper bounds of a query's products with key blocks (ReSA, Quest)"
    problem = BlockScore

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("q", "k_min", "k_max", "seq_lens", "scores")

    def arguments(self, problem: BlockScore) -> tuple[Argument, ...]:
        """Describe every tensor."""
        shape = ("batch", problem.query_tokens, problem.query_heads, problem.head_dim)
        return (
            Argument("q", shape, problem.dtype, "input"),
            slots(problem, "k_min", problem.head_dim),
            slots(problem, "k_max", problem.head_dim),
            lengths(problem),
            scores(problem, "scores"),
        )

    def make_inputs(self, problem: BlockScore, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: BlockScore, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests; unused slots and the queries of empty requests are poison."""
        inputs = self._inputs(problem, ragged(problem.batch, problem.context, rng), rng)
        for request, length in enumerate(inputs["seq_lens"]):
            for name in ("k_min", "k_max"):
                inputs[name][request, :, block_count(length, problem.block_size) :] = np.nan
            if not length:
                inputs["q"][request] = np.nan
        return inputs

    def _inputs(
        self, problem: BlockScore, seq_lens: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        arguments = {a.name: a for a in self.arguments(problem)}
        q = rng.standard_normal(arguments["q"].concrete(problem.extents), dtype=np.float32)
        shape = arguments["k_min"].concrete(problem.extents)
        # Bounds of normal keys lie about two deviations either side of the mean.
        middle = rng.standard_normal(shape, dtype=np.float32)
        half = rng.random(shape, dtype=np.float32) * 2 + 0.5
        return {
            "q": round_to(q, problem.dtype),
            "k_min": round_to(middle - half, problem.dtype),
            "k_max": round_to(middle + half, problem.dtype),
            "seq_lens": seq_lens,
        }

    def reference(self, problem: BlockScore, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute scores in float64."""
        shape = inputs["k_min"].shape[:-1]
        found = np.full(shape, -np.inf, np.float32)
        grouped = (problem.query_tokens, problem.kv_heads, problem.group, problem.head_dim)
        for request, length in enumerate(inputs["seq_lens"]):
            used = block_count(length, problem.block_size)
            q = inputs["q"][request].reshape(grouped).astype(np.float64)
            mean = q.mean((0, 2))[:, None] * problem.scale
            bounds = [inputs[n][request, :, :used].astype(np.float64) for n in ("k_min", "k_max")]
            found[request, :, :used] = np.maximum(*(mean * b for b in bounds)).sum(-1)
        return {"scores": found}

    def work(self, problem: BlockScore) -> Work:
        """Count two products, a maximum and a sum a dimension; bounds are read once."""
        rows = problem.batch * problem.kv_heads * block_count(problem.context, problem.block_size)
        queries = problem.batch * problem.query_tokens * problem.query_heads
        values = 2 * rows + queries
        moved = values * problem.head_dim * itemsize(problem.dtype) + 4 * rows
        return Work(operations=4 * rows * problem.head_dim, bytes=moved)

    def tolerance(self, problem: BlockScore, output: str) -> Tolerance:
        """Inputs are exact in fp32; only fp32 products and sums round."""
        reach = problem.scale * problem.head_dim
        return Tolerance(1e-5, 2.0**-20 * reach, "fp32 sums of head_dim products of order scale")

    def examples(self) -> tuple[BlockScore, ...]:
        """Return a Llama-3.1-8B layer at 32K and 128K."""
        return (BlockScore(1, 32768, 32, 8, 128), BlockScore(1, 131072, 32, 8, 128))

    def parse_shape(self, text: str, **fields: Any) -> BlockScore:
        """Read ``BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "query_heads", "kv_heads", "head_dim")
        return BlockScore(**sizes_of(self.name, names, text), **fields)


BLOCK_SCORE = BlockScoreOperator()
