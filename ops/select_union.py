"""Select tokens that all heads attend to: the union of every head's best ones.

Source: LessIsMore (arXiv 2508.07101), its reference algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import sizes_of
from wattune.ops.fields import error, integer, number
from wattune.ops.gate_parts import ragged
from wattune.ops.operator import Argument, Array, Limit, Operator, Problem, Tolerance, Values, Work

TOKENS = "score_tokens"


@dataclass(frozen=True)
class SelectUnion(Problem):
    """Tokens of each request: logits float32 [batch, query_heads, score_tokens].

    A budget of K = token_budget tokens is n_mid = int(K middle_ratio) that heads choose,
    ``sink_tokens`` first ones and n_recent = K - n_mid - sink_tokens last ones (no sinks where
    they would take more than K - n_mid). A request of S > K tokens keeps its first and last ones;
    of those between, each head ranks its n_mid best, and the union takes rank 0 of every head in
    turn, then rank 1 and so on, until it has n_mid different tokens. One of S <= K keeps all.

    ``token_indices`` int32 [batch, K] ascends and ends in -1, ``token_counts`` [batch] says how
    many there are. With ``kv_heads`` each KV head has a union of its own group's heads: [batch,
    kv_heads, K]. Of equal logits the lower index is better; NaN counts as -inf; logits beyond a
    request are not read.
    """

    operator: ClassVar[str] = "select_union"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (TOKENS,)

    batch: int
    context: int
    query_heads: int
    kv_heads: int = 0
    token_budget: int = 2048
    middle_ratio: float = 0.75
    sink_tokens: int = 4

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch", "context", "query_heads", "token_budget"):
            integer(self, name, 1)
        for name in ("kv_heads", "sink_tokens"):
            integer(self, name, 0)
        number(self, "middle_ratio")
        if self.middle_ratio > 1:
            raise error(self, "middle_ratio", "a number from 0 to 1")
        if self.kv_heads and self.query_heads % self.kv_heads:
            raise error(self, "query_heads", f"a multiple of kv_heads ({self.kv_heads})")

    @property
    def middle(self) -> int:
        """Return how many tokens the heads choose."""
        return int(self.token_budget * self.middle_ratio)

    @property
    def sinks(self) -> int:
        """Return how many first tokens are kept."""
        return self.sink_tokens if self.token_budget - self.middle >= self.sink_tokens else 0

    @property
    def recent(self) -> int:
        """Return how many last tokens are kept."""
        return self.token_budget - self.middle - self.sinks

    @property
    def unions(self) -> int:
        """Return how many lists a request has."""
        return self.kv_heads or 1

    @property
    def group(self) -> int:
        """Return how many heads a union is of."""
        return self.query_heads // self.unions

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and the columns of the logits."""
        return {**self.sizes, TOKENS: self.context}


class SelectUnionOperator(Operator[SelectUnion]):
    """The operator object of `SelectUnion`."""

    name = "select_union"
    summary = "choose tokens for all heads: a union of every head's best (LessIsMore)"
    problem = SelectUnion

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("logits", "seq_lens", "workspace", "token_indices", "token_counts")

    def arguments(self, problem: SelectUnion) -> tuple[Argument, ...]:
        """Describe every tensor."""
        lists = ("batch", problem.kv_heads) if problem.kv_heads else ("batch",)
        values = Values(0, Limit(TOKENS), maximum="context")
        return (
            Argument("logits", ("batch", problem.query_heads, TOKENS), "float32", "input"),
            Argument("seq_lens", ("batch",), "int32", "input", values=values),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("token_indices", (*lists, problem.token_budget), "int32", "output"),
            Argument("token_counts", lists, "int32", "output"),
        )

    def make_inputs(self, problem: SelectUnion, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests; heads agree in part, as those of a model do."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: SelectUnion, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests with ties and NaN; columns beyond them hold the best logits."""
        inputs = self._inputs(problem, ragged(problem.batch, problem.context, rng), rng)
        logits = inputs["logits"]
        logits[::2] = np.round(logits[::2] * 4) / 4
        logits[:, ::3][rng.random(logits[:, ::3].shape) < 0.3] = np.nan
        logits[:, 1::3][rng.random(logits[:, 1::3].shape) < 0.3] = -np.inf
        for request, length in enumerate(inputs["seq_lens"]):
            logits[request, :, length:] = np.inf
        return inputs

    def _inputs(
        self, problem: SelectUnion, lengths: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        shape = (problem.batch, problem.query_heads, problem.context)
        logits = rng.standard_normal(shape, dtype=np.float32)
        logits += rng.standard_normal((problem.batch, 1, problem.context), dtype=np.float32)
        return {"logits": logits, "seq_lens": lengths}

    def reference(self, problem: SelectUnion, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Sort every head's logits, join them rank by rank."""
        shape = (len(inputs["seq_lens"]), problem.unions)
        indices = np.full((*shape, problem.token_budget), -1, np.int32)
        counts = np.zeros(shape, np.int32)
        for request, length in enumerate(inputs["seq_lens"]):
            for at in range(problem.unions):
                heads = slice(at * problem.group, (at + 1) * problem.group)
                chosen = unite(problem, inputs["logits"][request, heads, :length])
                indices[request, at, : len(chosen)] = chosen
                counts[request, at] = len(chosen)
        lists = slice(None) if problem.kv_heads else 0
        return {"token_indices": indices[:, lists], "token_counts": counts[:, lists]}

    def work(self, problem: SelectUnion) -> Work:
        """Count a comparison a logit; logits are read once, lists written once."""
        logits = problem.batch * problem.query_heads * problem.context
        written = problem.batch * problem.unions * (problem.token_budget + 1)
        return Work(logits, 4 * (logits + written))

    def tolerance(self, problem: SelectUnion, output: str) -> Tolerance:
        """Lists are exact."""
        return Tolerance(0.0, 0.0, "comparisons are exact")

    def examples(self) -> tuple[SelectUnion, ...]:
        """Return a selection layer of Qwen3-8B."""
        return (SelectUnion(1, 32768, 32),)

    def parse_shape(self, text: str, **fields: Any) -> SelectUnion:
        """Read ``BATCHxCONTEXTxQUERY_HEADS``."""
        names = ("batch", "context", "query_heads")
        return SelectUnion(**sizes_of(self.name, names, text), **fields)


def unite(problem: SelectUnion, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the tokens for logits [heads, tokens of the request]."""
    length = logits.shape[1]
    if length <= problem.token_budget:
        return np.arange(length)
    end = length - problem.recent
    between = logits[:, problem.sinks : end]
    order = np.argsort(-np.where(np.isnan(between), -np.inf, between), axis=1, kind="stable")
    by_rank = order[:, : problem.middle].T.ravel()
    tokens, first_seen = np.unique(by_rank, return_index=True)
    middle = tokens[np.argsort(first_seen)][: problem.middle] + problem.sinks
    return np.sort(np.concatenate([np.arange(problem.sinks), middle, np.arange(end, length)]))


SELECT_UNION = SelectUnionOperator()
