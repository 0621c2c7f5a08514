"""The logits of a learned attention gate: a projected query against compressed keys of blocks.

Source: SeerAttention-R (arXiv 2506.08889), AttnGate, decode form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize
from wattune.ops.fields import error, integer, one_of
from wattune.ops.gate_inputs import gate_inputs
from wattune.ops.gate_parts import (
    POSITIONS,
    SLOTS,
    Floats,
    block_count,
    gate_row,
    lengths,
    norm_weight,
    ragged,
    rotary_table,
    scores,
    slots,
)
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work

QUERY_MODES = ("qproj", "qavgproj", "qavg")


@dataclass(frozen=True)
class AttnGate(Problem):
    """logits[b, h, j] = qg[b, h] . k_compressed[b, h, j] / sqrt(gate_dim) of one query a request.

    ``q`` [batch, query_heads, head_dim] is pre-RoPE; ``query_mode`` says how a group's queries
    become qg [gate_dim]:

        qproj     sum over i of q_i @ wq[h, i]   wq [kv_heads, group, head_dim, gate_dim]
        qavgproj  mean over i of q_i, @ wq[h]    wq [kv_heads, head_dim, gate_dim]
        qavg      mean over i of q_i             gate_dim = head_dim

    then an RMSNorm (eps 1e-6) and a rotation at the query's own position seq_lens - 1, both
    optional. Slots beyond a request's blocks get -inf. The entry of an incomplete last block is
    zero (`attn_gate_compress`), and so is its logit. The softmax belongs to `select_blocks`.
    """

    operator: ClassVar[str] = "attn_gate"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (SLOTS, POSITIONS)

    batch: int
    context: int
    query_heads: int
    kv_heads: int
    head_dim: int
    gate_dim: int = 128
    block_size: int = 64
    query_mode: str = "qproj"
    norm: bool = True
    rope: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch", "context", "query_heads", "kv_heads", "head_dim", "gate_dim"):
            integer(self, name, 1)
        integer(self, "block_size", 1)
        one_of(self, "query_mode", QUERY_MODES)
        one_of(self, "dtype", FLOATS)
        for name in ("norm", "rope"):
            one_of(self, name, (False, True))
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.query_heads % self.kv_heads:
            raise error(self, "query_heads", f"a multiple of kv_heads ({self.kv_heads})")
        if self.query_mode == "qavg" and self.gate_dim != self.head_dim:
            raise error(self, "gate_dim", f"head_dim ({self.head_dim}), as qavg projects nothing")
        if self.rope and self.gate_dim % 2:
            raise error(self, "gate_dim", "an even number, as its halves are rotated")

    @property
    def group(self) -> int:
        """Return how many query heads share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def projected(self) -> int:
        """Return how many values of a KV head's queries are projected."""
        heads = {"qproj": self.group, "qavgproj": 1, "qavg": 0}[self.query_mode]
        return heads * self.head_dim

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes, the slots of the context, and its positions."""
        blocks = block_count(self.context, self.block_size)
        return {**self.sizes, SLOTS: blocks, POSITIONS: self.context}


class AttnGateOperator(Operator[AttnGate]):
    """The operator object of `AttnGate`."""

    name = "attn_gate"
    summary = "logits of a learned gate over key blocks (SeerAttention-R)"
    problem = AttnGate

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        before = ("q", "wq", "q_norm", "cos_sin_cache", "k_compressed", "seq_lens")
        return (*before, "workspace", "logits")

    def arguments(self, problem: AttnGate) -> tuple[Argument, ...]:
        """Describe every tensor."""
        heads, dim, dtype = problem.kv_heads, problem.head_dim, problem.dtype
        group = (problem.group,) if problem.query_mode == "qproj" else ()
        weight = Argument("wq", (heads, *group, dim, problem.gate_dim), dtype, "input")
        return (
            Argument("q", ("batch", problem.query_heads, dim), dtype, "input"),
            *((weight,) if problem.projected else ()),
            *norm_weight(problem, "q_norm"),
            *rotary_table(problem),
            slots(problem, "k_compressed", problem.gate_dim),
            lengths(problem),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            scores(problem, "logits"),
        )

    def make_inputs(self, problem: AttnGate, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests."""
        seq_lens = np.full(problem.batch, problem.context, np.int32)
        return gate_inputs(problem, self.arguments(problem), seq_lens, rng)

    def verification_inputs(self, problem: AttnGate, rng: np.random.Generator) -> dict[str, Array]:
        """Draw ragged requests; unused slots and the queries of empty requests are poison."""
        seq_lens = ragged(problem.batch, problem.context, rng)
        return gate_inputs(problem, self.arguments(problem), seq_lens, rng, hard=True)

    def reference(self, problem: AttnGate, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute logits in float64."""
        entries = inputs["k_compressed"]
        found = np.full(entries.shape[:-1], -np.inf, np.float32)
        for request, length in enumerate(inputs["seq_lens"].astype(np.int64)):
            used = block_count(length, problem.block_size)
            if not used:
                continue
            rows = self._projected(problem, inputs, inputs["q"][request].astype(np.float64))
            query = gate_row(problem, inputs, "q_norm", rows, length - 1)
            keys = entries[request, :, :used].astype(np.float64)
            found[request, :, :used] = np.einsum("hd,hjd->hj", query, keys) / problem.gate_dim**0.5
        return {"logits": found}

    def _projected(self, problem: AttnGate, inputs: Mapping[str, Array], q: Floats) -> Floats:
        """Return [kv_heads, gate_dim] of a request's queries [query_heads, head_dim]."""
        grouped = q.reshape(problem.kv_heads, problem.group, problem.head_dim)
        if problem.query_mode == "qavg":
            return np.asarray(grouped.mean(1))
        weight = inputs["wq"].astype(np.float64)
        if problem.query_mode == "qavgproj":
            return np.asarray(np.einsum("hd,hdo->ho", grouped.mean(1), weight))
        return np.asarray(np.einsum("hgd,hgdo->ho", grouped, weight))

    def work(self, problem: AttnGate) -> Work:
        """Count the projection and a product an entry; weights and entries are read once."""
        blocks = block_count(problem.context, problem.block_size)
        rows = problem.batch * problem.kv_heads
        weights = problem.kv_heads * problem.projected * problem.gate_dim
        queries = problem.batch * problem.query_heads * problem.head_dim
        values = weights + queries + rows * blocks * problem.gate_dim
        moved = values * itemsize(problem.dtype) + 4 * rows * blocks
        return Work(2 * rows * problem.gate_dim * (problem.projected + blocks), moved)

    def tolerance(self, problem: AttnGate, output: str) -> Tolerance:
        """Nothing is rounded to 16 bits on the way."""
        return Tolerance(1e-5, 3e-5, "fp32 sums of thousands of products of order one")

    def examples(self) -> tuple[AttnGate, ...]:
        """Return a Qwen3-8B layer at 32K and 128K."""
        return (AttnGate(1, 32768, 32, 8, 128), AttnGate(1, 131072, 32, 8, 128))

    def parse_shape(self, text: str, **fields: Any) -> AttnGate:
        """Read ``BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "query_heads", "kv_heads", "head_dim")
        return AttnGate(**sizes_of(self.name, names, text), **fields)


ATTN_GATE = AttnGateOperator()
