"""What the decode attention operators share: sizes, arguments, inputs, reference, tolerance.

    score = q . k * scale;  score = soft_cap * tanh(score / soft_cap) where there is a cap
    visible to query token i of request b: keys at positions p with
        end - window <= p < end,    end = seq_lens[b] - query_tokens + i + 1   (bottom-right causal)
    out = sum exp(score - m) v / (sum exp(score - m) + exp(sink - m)),  lse = log sum exp(score)

The log-sum-exp is natural and does not count the sink; no visible key gives out 0 and lse -inf.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ProblemError
from wattune.ops.dtypes import FLOATS, itemsize, round_to, unit_roundoff
from wattune.ops.fields import error, integer, number, one_of
from wattune.ops.kv_cache import FREE_SIZES, LAYOUTS, KVCache, Positions
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work

MOST_QUERY_TOKENS = 8
MOST_GROUP = 16


@dataclass(frozen=True)
class Attention(Problem):
    """Sizes of decode attention: q [batch, query_tokens, query_heads, head_dim] against a cache.

    ``head_dim`` is that of queries and keys, ``value_dim`` (0: the same) that of values and
    outputs. ``layout`` and ``page_size`` (0: contiguous) describe the cache. ``window`` is the
    number of keys a query sees, its own included; 0 is all. ``sinks``: a learnable logit per query
    head joins the softmax's denominator. ``soft_cap`` 0 is none; ``scale`` 0 is head_dim^-0.5.
    ``return_lse`` adds the log-sum-exp as a second output.
    """

    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = FREE_SIZES
    most_query_tokens: ClassVar[int] = MOST_QUERY_TOKENS

    batch: int
    context: int
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    query_tokens: int = 1
    dtype: str = "bfloat16"
    layout: str = "HND"
    page_size: int = 0
    window: int = 0
    sinks: bool = False
    soft_cap: float = 0.0
    scale: float = 0.0
    return_lse: bool = False

    def __post_init__(self) -> None:
        """Check every field and fill what follows from others."""
        for name in ("batch", "context", "query_heads", "kv_heads", "head_dim"):
            integer(self, name, 1)
        for name in ("value_dim", "page_size", "window"):
            integer(self, name, 0)
        integer(self, "query_tokens", 1, self.most_query_tokens)
        one_of(self, "dtype", FLOATS)
        one_of(self, "layout", LAYOUTS)
        for name in ("sinks", "return_lse"):
            one_of(self, name, (False, True))
            object.__setattr__(self, name, bool(getattr(self, name)))
        number(self, "soft_cap")
        number(self, "scale")
        if self.query_heads % self.kv_heads or self.group > MOST_GROUP:
            allowed = f"1 to {MOST_GROUP} times kv_heads ({self.kv_heads})"
            raise error(self, "query_heads", allowed)
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)
        if not self.scale:
            object.__setattr__(self, "scale", self.head_dim**-0.5)

    @property
    def group(self) -> int:
        """Return how many query heads read one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def cache(self) -> KVCache:
        """Return the geometry of the cache."""
        return KVCache(self.kv_heads, self.layout, self.page_size, self.dtype, self.window)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and those of the cache."""
        return {**self.sizes, **self.cache.extents(self.batch, self.context)}

    @property
    def visible(self) -> int:
        """Return how many keys of a request's KV head some query token sees, at the most."""
        if not self.window:
            return self.context
        return min(self.context, self.window + self.query_tokens - 1)

    def shared_data(self) -> str:
        """Name the cache: append, selection and attention read it in one layout."""
        return cache_name(self)


def cache_name(problem: Any) -> str:
    """Name the cache of a problem with a cache's fields.

    Not all operators know how wide values are, and it does not change the order of rows.
    """
    widths = f"{problem.kv_heads}x{problem.head_dim}"
    return f"kv_cache:{widths}:{problem.dtype}:{problem.layout}:{problem.page_size}"


P = TypeVar("P", bound=Attention)


class AttentionOperator(Operator[P]):
    """An operator that attends to keys of a cache; subclasses say which keys."""

    shape_names: ClassVar[tuple[str, ...]] = (
        "batch",
        "context",
        "query_heads",
        "kv_heads",
        "head_dim",
    )

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        before = ("q", *self.new_rows, *self.caches, *self.lists)
        return (*before, "seq_lens", "page_table", "sinks", "workspace", "out", "lse")

    # Names of the caches, and of what a subclass adds: rows that are written, lists of what is
    # attended to.
    caches: ClassVar[tuple[str, ...]] = ("k_cache", "v_cache")
    new_rows: ClassVar[tuple[str, ...]] = ()
    lists: ClassVar[tuple[str, ...]] = ()

    def cache_arguments(self, problem: P) -> tuple[Argument, ...]:
        """Describe the caches, the requests' lengths and the page table."""
        cache, updated = problem.cache, bool(self.new_rows)
        return (
            cache.argument("k_cache", problem.head_dim, updated),
            cache.argument("v_cache", problem.value_dim, updated),
            cache.lengths(),
            *cache.page_table(),
        )

    def more_arguments(self, problem: P) -> tuple[Argument, ...]:
        """Describe the arguments that a subclass adds."""
        return ()

    def arguments(self, problem: P) -> tuple[Argument, ...]:
        """Describe every tensor of the kernel, in calling order."""
        tokens, heads = problem.query_tokens, problem.query_heads
        found = [
            Argument("q", ("batch", tokens, heads, problem.head_dim), problem.dtype, "input"),
            *self.cache_arguments(problem),
            *self.more_arguments(problem),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("out", ("batch", tokens, heads, problem.value_dim), problem.dtype, "output"),
        ]
        if problem.sinks:
            found.append(Argument("sinks", (heads,), "float32", "input"))
        if problem.return_lse:
            found.append(Argument("lse", ("batch", tokens, heads), "float32", "output"))
        by_name = {argument.name: argument for argument in found}
        return tuple(by_name[name] for name in self.signature if name in by_name)

    def make_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests; queries are near some keys, so that outputs are of order one."""
        lengths = np.full(problem.batch, problem.context, np.int32)
        return self._inputs(problem, lengths, rng)

    def verification_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw ragged requests, one of them empty; rows that no query sees are poison."""
        lengths = rng.integers(1, problem.context + 1, problem.batch).astype(np.int32)
        lengths[0] = problem.context - problem.context // 7
        if problem.batch > 1:
            lengths[-1] = 0
        inputs = self._inputs(problem, lengths, rng, hard=True)
        return {**inputs, **self.poisoned(problem, inputs)}

    def poisoned(self, problem: P, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the caches with poison in all rows that no query sees."""
        return {
            name: problem.cache.poison(inputs[name], inputs, self.live(problem, inputs))
            for name in self.caches
        }

    def live(self, problem: P, inputs: Mapping[str, Array]) -> Iterator[tuple[int, Positions]]:
        """Yield each request's positions that some query sees."""
        for request in range(problem.batch):
            seen = [self.keys(problem, inputs, request, h)[0] for h in range(problem.kv_heads)]
            yield request, np.unique(np.concatenate(seen))

    def _inputs(
        self, problem: P, lengths: Array, rng: np.random.Generator, hard: bool = False
    ) -> dict[str, Array]:
        inputs: dict[str, Array] = {"seq_lens": lengths, **self.cache_inputs(problem, rng)}
        inputs.update(self._beside(problem, lengths, rng, hard))
        inputs["q"] = self._queries(problem, inputs, rng)
        return inputs

    def _beside(
        self, problem: P, lengths: Array, rng: np.random.Generator, hard: bool
    ) -> dict[str, Array]:
        """Draw sinks and what a subclass adds."""
        inputs: dict[str, Array] = {}
        if problem.sinks:
            inputs["sinks"] = rng.normal(0, 2, problem.query_heads).astype(np.float32)
        return {**inputs, **self.more_inputs(problem, lengths, rng, hard)}

    def timing_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests without their caches; queries are near no key."""
        lengths = np.full(problem.batch, problem.context, np.int32)
        shape = (problem.batch, problem.query_tokens, problem.query_heads, problem.head_dim)
        return {
            "seq_lens": lengths,
            **problem.cache.make_page_table(problem.batch, problem.context, rng),
            **self._beside(problem, lengths, rng, hard=False),
            "q": round_to(rng.standard_normal(shape, dtype=np.float32), problem.dtype),
        }

    def cache_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full caches and the page table."""
        batch, context, cache = problem.batch, problem.context, problem.cache
        return {
            "k_cache": cache.make(batch, context, problem.head_dim, rng),
            "v_cache": cache.make(batch, context, problem.value_dim, rng),
            **cache.make_page_table(batch, context, rng),
        }

    def read(
        self,
        problem: P,
        inputs: Mapping[str, Array],
        which: str,
        request: int,
        head: int,
        positions: Positions,
    ) -> NDArray[np.float64]:
        """Return keys (``which`` "k") or values ("v") [positions, width] in float64."""
        return problem.cache.read(inputs[f"{which}_cache"], inputs, request, head, positions)

    def more_inputs(
        self, problem: P, lengths: Array, rng: np.random.Generator, hard: bool
    ) -> dict[str, Array]:
        """Draw what a subclass adds; ``hard``: what kernels get wrong."""
        return {}

    def _queries(
        self, problem: P, inputs: Mapping[str, Array], rng: np.random.Generator
    ) -> NDArray[Any]:
        """Draw each query as a multiple of one of its keys: that key weighs about a half."""
        shape = (problem.batch, problem.query_tokens, problem.query_heads, problem.head_dim)
        q = rng.standard_normal(shape, dtype=np.float32)
        for request in range(problem.batch):
            for head in range(problem.kv_heads):
                positions, visible = self.keys(problem, inputs, request, head)
                for token in range(problem.query_tokens):
                    seen = positions[visible[token]]
                    if not len(seen):
                        continue
                    first = head * problem.group
                    near = rng.choice(seen, problem.group)
                    keys = self.read(problem, inputs, "k", request, head, near)
                    strength = (np.log(len(seen)) + 1) / (problem.scale * problem.head_dim)
                    q[request, token, first : first + problem.group] = strength * keys
        return round_to(q, problem.dtype)

    @abstractmethod
    def keys(
        self, problem: P, inputs: Mapping[str, Array], request: int, head: int
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return positions of keys, each once, and [query_tokens, positions]: who sees them."""

    def reference(self, problem: P, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute out and lse in float64."""
        shape = (problem.batch, problem.query_tokens, problem.query_heads)
        out = np.zeros((*shape, problem.value_dim))
        lse = np.full(shape, -np.inf)
        for request in range(problem.batch):
            for head in range(problem.kv_heads):
                positions, visible = self.keys(problem, inputs, request, head)
                heads = slice(head * problem.group, (head + 1) * problem.group)
                k = self.read(problem, inputs, "k", request, head, positions)
                v = self.read(problem, inputs, "v", request, head, positions)
                sinks = inputs["sinks"][heads].astype(np.float64) if problem.sinks else None
                for token in range(problem.query_tokens):
                    q = inputs["q"][request, token, heads].astype(np.float64)
                    scores = softened(q @ k[visible[token]].T * problem.scale, problem.soft_cap)
                    weights, lse[request, token, heads] = softmax(scores, sinks)
                    out[request, token, heads] = weights @ v[visible[token]]
        found = {"out": round_to(out, problem.dtype)}
        if problem.return_lse:
            found["lse"] = lse.astype(np.float32)
        return found

    def work(self, problem: P) -> Work:
        """Count two products a key and query; the bytes of the keys and values that are read."""
        rows = problem.batch * problem.query_tokens * problem.query_heads
        widths = problem.head_dim + problem.value_dim
        seen = self.keys_read(problem)
        moved = problem.batch * problem.kv_heads * seen + rows // problem.group
        size = itemsize(problem.dtype)
        return Work(
            operations=2 * rows * widths * seen,
            bytes=size * widths * (moved + rows - rows // problem.group),
        )

    def keys_read(self, problem: P) -> int:
        """Return how many keys of each KV head a call must read."""
        return problem.visible

    def tolerance(self, problem: P, output: str) -> Tolerance:
        """Return what the roundings of fp32 sums, of exp, and of a 16-bit weight allow."""
        if output.endswith("_cache"):
            return Tolerance(0.0, 0.0, "rows are copied as they are")
        return attention_tolerance(problem.dtype, output)

    def parse_shape(self, text: str, **fields: Any) -> P:
        """Read ``BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIM``."""
        return self.problem(**sizes_of(self.name, self.shape_names, text), **fields)


def sizes_of(name: str, names: tuple[str, ...], text: str) -> dict[str, Any]:
    """Read sizes separated by x into the fields of these names."""
    parts = text.split("x")
    if len(parts) != len(names) or not all(part.isdigit() for part in parts):
        expected = "x".join(n.upper() for n in names)
        raise ProblemError(f"{name}: shape {text!r}; allowed: {expected}")
    return {n: int(part) for n, part in zip(names, parts, strict=True)}


def causal(problem: Attention, length: int, positions: Positions) -> NDArray[np.bool_]:
    """Return [query_tokens, positions]: which keys each query token may see."""
    ends = length - problem.query_tokens + 1 + np.arange(problem.query_tokens)[:, None]
    seen = (positions < ends) & (positions < length)
    if problem.window:
        seen &= positions >= ends - problem.window
    return np.asarray(seen)


def softened(scores: NDArray[np.float64], soft_cap: float) -> NDArray[np.float64]:
    """Apply the soft cap, where there is one."""
    return soft_cap * np.tanh(scores / soft_cap) if soft_cap else scores


def softmax(
    scores: NDArray[np.float64], sinks: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [rows, keys] and the log-sum-exp of each row, the sink not counted."""
    if not scores.shape[1]:
        return scores, np.full(len(scores), -np.inf)
    top = scores.max(1)
    total = np.exp(scores - top[:, None]).sum(1)
    lse = top + np.log(total)
    denominator = lse if sinks is None else np.logaddexp(lse, sinks)
    return np.exp(scores - denominator[:, None]), lse


def attention_tolerance(dtype: str, output: str) -> Tolerance:
    """Return the tolerance of ``out`` and ``lse`` for values of order one.

    A 16-bit kernel may round the weights once: a relative error of each weight, so an absolute
    one of the output, of a unit of the dtype times the largest values (about 4).
    """
    unit = unit_roundoff(dtype)
    if output == "lse":
        return Tolerance(2e-6, 1e-4, "fp32 sums of hundreds of products that reach 100")
    reason = "one rounding of the output, one of each weight, fp32 sums and exp to 2^-21"
    return Tolerance(2 * unit + 2.0**-18, 2 * unit + 2.0**-18, reason)
