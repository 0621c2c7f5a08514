"""Select the key blocks that sparse decode attention reads, from one score a block.

Sources: SeerAttention-R (arXiv 2506.08889): a budget of tokens, or a threshold of the softmax;
ReSA (arXiv 2506.04108): a fraction of the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import sizes_of
from wattune.ops.fields import error, integer, number, one_of
from wattune.ops.gate_parts import SLOTS, block_count, lengths, ragged
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work

MILLION = 1_000_000
# What a method's fields are where the caller does not say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "budget": {"token_budget": 4096},
    "threshold": {"threshold": 0.004},
    "fraction": {"fraction": 0.1, "min_blocks": 16},
}
_FORCED = {"budget": "beside", "threshold": "beside", "fraction": "inside"}

Scores = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SelectBlocks(Problem):
    """Best blocks of each request and KV head: scores float32 [batch, kv_heads, score_blocks].

    A request of length L has N = ceil(L / block_size) blocks; scores beyond them are not read.
    ``block_indices`` int32 [batch, kv_heads, max_blocks] ascends and ends in -1, ``block_counts``
    [batch, kv_heads] says how many there are. ``query_tokens`` > 0: scores, indices and counts
    have an axis of query tokens after the batch, and L is the length that a token sees.

    ``method`` chooses (fields of other methods must stay 0):

    * ``budget``: the best n = token_budget // block_size (0: a budget of 4096);
    * ``fraction``: the best n = max(ceil(N fraction), min(N, min_blocks)), the fraction taken to
      six decimals (0: 0.1 and 16 blocks);
    * ``threshold``: those with softmax(scores)_j > threshold (0: 0.004).

    The first ``sink_blocks`` and the last ``local_blocks`` are always kept. ``forced`` says how
    they count: ``inside`` n, which they take places of (ReSA's; n is at least their number), or
    ``beside`` the n best of all blocks, themselves among them (SeerAttention's: n to n + forced
    blocks in all). Where more are chosen than ``max_blocks``, the best ones stay beside the forced
    ones; 0 is as many as there can be at this context. Of equal scores the lower index is better;
    NaN counts as -inf, which a threshold never passes.
    """

    operator: ClassVar[str] = "select_blocks"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (SLOTS,)

    batch: int
    context: int
    kv_heads: int
    max_blocks: int = 0
    block_size: int = 64
    query_tokens: int = 0
    method: str = "budget"
    token_budget: int = 0
    threshold: float = 0.0
    fraction: float = 0.0
    min_blocks: int = 0
    sink_blocks: int = 0
    local_blocks: int = 1
    forced: str = ""

    def __post_init__(self) -> None:
        """Check every field and fill what follows from others."""
        for name in ("batch", "context", "kv_heads", "block_size"):
            integer(self, name, 1)
        for name in ("max_blocks", "query_tokens", "token_budget", "min_blocks"):
            integer(self, name, 0)
        for name in ("sink_blocks", "local_blocks"):
            integer(self, name, 0)
        for name in ("threshold", "fraction"):
            number(self, name)
        one_of(self, "method", _DEFAULTS)
        self._fill_method()
        if not self.forced:
            object.__setattr__(self, "forced", _FORCED[self.method])
        one_of(self, "forced", ("beside", "inside") if self.counted else ("beside",))
        if not self.max_blocks:
            most = self.most(block_count(self.context, self.block_size))
            object.__setattr__(self, "max_blocks", max(most, self.always, 1))
        if self.max_blocks < max(self.always, 1):
            allowed = f"at least sink_blocks + local_blocks ({self.always})"
            raise error(self, "max_blocks", allowed)

    def _fill_method(self) -> None:
        """Refuse fields of other methods; fill those of this one."""
        for method, defaults in _DEFAULTS.items():
            given = [name for name in defaults if getattr(self, name)]
            if given and method != self.method:
                raise error(self, given[0], f"0 with method {self.method}")
            # A fraction without a minimum is just that.
            if method == self.method and next(iter(defaults)) not in given:
                for name in (name for name in defaults if name not in given):
                    object.__setattr__(self, name, defaults[name])
        if self.method == "budget" and self.token_budget < self.block_size:
            raise error(self, "token_budget", f"at least block_size ({self.block_size})")
        if self.fraction > 1:
            raise error(self, "fraction", "a number from 0 to 1")

    @property
    def counted(self) -> bool:
        """Say whether the method fixes how many blocks are chosen."""
        return self.method != "threshold"

    @property
    def always(self) -> int:
        """Return the blocks that are kept whatever they score, at the most."""
        return self.sink_blocks + self.local_blocks

    @property
    def parts(self) -> int:
        """Return the fraction in parts of a million."""
        return round(self.fraction * MILLION)

    def best(self, blocks: int) -> int:
        """Return n for a request of so many blocks."""
        if self.method == "budget":
            return self.token_budget // self.block_size
        return max(block_count(blocks * self.parts, MILLION), min(blocks, self.min_blocks))

    def most(self, blocks: int) -> int:
        """Return how many of so many blocks are chosen, at the most, before `max_blocks`."""
        if not self.counted:
            return blocks
        beside = self.always if self.forced == "beside" else 0
        most = max(self.best(blocks) + beside, self.always)
        # A budget's lists are equally long at every context.
        return most if self.method == "budget" else min(most, blocks)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and the slots of the context."""
        return {**self.sizes, SLOTS: block_count(self.context, self.block_size)}


class SelectBlocksOperator(Operator[SelectBlocks]):
    """The operator object of `SelectBlocks`."""

    name = "select_blocks"
    summary = "choose key blocks by their scores: a budget, a fraction or a threshold"
    problem = SelectBlocks

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("scores", "seq_lens", "workspace", "block_indices", "block_counts")

    def arguments(self, problem: SelectBlocks) -> tuple[Argument, ...]:
        """Describe every tensor."""
        tokens = (problem.query_tokens,) if problem.query_tokens else ()
        rows = ("batch", *tokens, problem.kv_heads)
        return (
            Argument("scores", (*rows, SLOTS), "float32", "input"),
            lengths(problem),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("block_indices", (*rows, problem.max_blocks), "int32", "output"),
            Argument("block_counts", rows, "int32", "output"),
        )

    def make_inputs(self, problem: SelectBlocks, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests with normal scores."""
        shape = self.arguments(problem)[0].concrete(problem.extents)
        scores = rng.normal(0, 2, shape).astype(np.float32)
        lens = np.full(problem.batch, problem.context, np.int32)
        return {"scores": self._clear(problem, scores, lens), "seq_lens": lens}

    def verification_inputs(
        self, problem: SelectBlocks, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests with ties, infinities and NaN; unused slots hold the best scores."""
        shape = self.arguments(problem)[0].concrete(problem.extents)
        scores = rng.normal(0, 2, shape).astype(np.float32)
        lens = ragged(problem.batch, problem.context, rng)
        rows = scores.reshape(-1, shape[-1])
        rows[::2] = np.round(rows[::2])
        rows[1::4, rng.random(shape[-1]) < 0.4] = np.nan
        rows[2::4, rng.random(shape[-1]) < 0.6] = -np.inf
        rows[3::4] = rows[3::4, :1]
        for at, (length, _) in enumerate(_rows(problem, lens)):
            rows[at, block_count(length, problem.block_size) :] = (np.inf, np.nan)[at % 2]
        return {"scores": self._clear(problem, scores, lens), "seq_lens": lens}

    def _clear(self, problem: SelectBlocks, scores: Scores, lens: Array) -> Scores:
        """Remove scores near a threshold, where roundings decide."""
        if problem.counted:
            return scores
        for row, (length, _) in zip(
            scores.reshape(-1, scores.shape[-1]), _rows(problem, lens), strict=True
        ):
            used = row[: block_count(length, problem.block_size)]
            while len(used):
                excess = _excess(used, problem.threshold)
                near = np.abs(excess) < 1e-3
                if not near.any():
                    break
                used[near] = -np.inf
        return scores

    def reference(self, problem: SelectBlocks, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Sort every row's blocks."""
        shape = inputs["scores"].shape
        scores = inputs["scores"].reshape(-1, shape[-1])
        indices = np.full((len(scores), problem.max_blocks), -1, np.int32)
        counts = np.zeros(len(scores), np.int32)
        for at, (length, _) in enumerate(_rows(problem, inputs["seq_lens"])):
            chosen = select(problem, scores[at, : block_count(length, problem.block_size)])
            indices[at, : len(chosen)] = chosen
            counts[at] = len(chosen)
        return {
            "block_indices": indices.reshape(*shape[:-1], problem.max_blocks),
            "block_counts": counts.reshape(shape[:-1]),
        }

    def work(self, problem: SelectBlocks) -> Work:
        """Count a comparison a score; scores are read once, lists written once."""
        rows = problem.batch * max(1, problem.query_tokens) * problem.kv_heads
        blocks = block_count(problem.context, problem.block_size)
        return Work(rows * blocks, 4 * rows * (blocks + problem.max_blocks + 1))

    def tolerance(self, problem: SelectBlocks, output: str) -> Tolerance:
        """Lists are exact; inputs keep scores away from a threshold."""
        return Tolerance(0.0, 0.0, "comparisons are exact")

    def examples(self) -> tuple[SelectBlocks, ...]:
        """Return SeerAttention's budget, and ReSA's tenth, at 32K."""
        return (
            SelectBlocks(1, 32768, 8),
            SelectBlocks(1, 32768, 8, block_size=16, method="fraction"),
        )

    def parse_shape(self, text: str, **fields: Any) -> SelectBlocks:
        """Read ``BATCHxCONTEXTxKV_HEADS``."""
        return SelectBlocks(**sizes_of(self.name, ("batch", "context", "kv_heads"), text), **fields)


def _rows(problem: SelectBlocks, lens: Array) -> list[tuple[int, int]]:
    """Return the length that each row of scores sees, and its KV head."""
    tokens = max(1, problem.query_tokens)
    return [
        (max(0, int(length) - tokens + 1 + token), head)
        for length in lens
        for token in range(tokens)
        for head in range(problem.kv_heads)
    ]


def select(problem: SelectBlocks, scores: Scores) -> Indices:
    """Return the blocks that are chosen from the scores of all of a request's blocks."""
    count = len(scores)
    index = np.arange(count)
    always = (index < problem.sink_blocks) | (index >= count - problem.local_blocks)
    ranked = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    others = ranked[~always[ranked]]
    if problem.method == "threshold":
        passed = _excess(scores, problem.threshold) > 0
        wanted = int((passed & ~always).sum())
    elif problem.forced == "inside":
        wanted = problem.best(count) - int(always.sum())
    else:
        wanted = int((~always[ranked[: problem.best(count)]]).sum())
    room = problem.max_blocks - int(always.sum())
    chosen = others[: max(0, min(wanted, room))]
    return np.sort(np.concatenate([index[always], chosen]))


def _excess(scores: Scores, threshold: float) -> NDArray[np.float64]:
    """Return log(softmax(scores) / threshold); -inf for -inf and NaN."""
    values = np.where(np.isnan(scores), -np.inf, scores).astype(np.float64)
    top = values.max(initial=-np.inf)
    if top == -np.inf:
        return values
    # Infinite scores share all of the weight.
    less = np.where(values == top, 0.0, values - min(top, np.finfo(np.float64).max))
    found: NDArray[np.float64] = less - np.log(np.exp(less).sum()) - np.log(threshold)
    return found


SELECT_BLOCKS = SelectBlocksOperator()
