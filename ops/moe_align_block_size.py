"""Sort (token, slot) pairs by expert, each expert's padded to blocks: vLLM's contract.

Pair p = token * top_k + slot. Order within an expert is that of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops import experts
from wattune.ops.attention import sizes_of
from wattune.ops.fields import integer, number
from wattune.ops.operator import (
    Argument,
    Array,
    Extent,
    Operator,
    Problem,
    Tolerance,
    Work,
    derived_sizes,
)

SLOTS, BLOCKS = "sorted_slots", "expert_blocks"


@dataclass(frozen=True)
class MoeAlignBlockSize(Problem):
    """sorted_token_ids, expert_ids, num_tokens_post_padded of topk_ids [tokens, top_k]; all int32.

    ``sorted_token_ids`` holds the pairs of expert 0, then those of 1 ...; those of each expert are
    followed by the sentinel tokens * top_k up to a multiple of ``block_size``, and so is all that
    lies behind the last. ``expert_ids``: the expert of each block, 0 behind the last one. An expert
    without pairs takes no block. ``num_tokens_post_padded`` [1]: where the last block ends.

    ``block_size`` 0 pads nothing: sorted_token_ids and ``expert_offsets`` [experts + 1], where each
    expert's pairs begin. Ids below 0 or of no expert are left out. ``local_experts`` > 0: these are
    here, and ``expert_map`` [num_experts] says which is which, -1 for one that is elsewhere.
    ``skew`` is that of the routing that inputs are drawn with.
    """

    operator: ClassVar[str] = "moe_align_block_size"
    runtime: ClassVar[tuple[str, ...]] = ("tokens",)
    # A sort cannot be cut.
    open_ended: ClassVar[tuple[str, ...]] = ("tokens",)
    free: ClassVar[tuple[str, ...]] = (SLOTS, BLOCKS)

    tokens: int
    num_experts: int
    top_k: int
    block_size: int = 16
    local_experts: int = 0
    skew: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        integer(self, "tokens", 1)
        integer(self, "num_experts", 1, 1 << 16)
        integer(self, "top_k", 1, self.num_experts)
        integer(self, "block_size", 0, 1 << 16)
        integer(self, "local_experts", 0, self.num_experts)
        number(self, "skew")

    @property
    def experts(self) -> int:
        """Return the experts that are here."""
        return self.local_experts or self.num_experts

    @property
    def derived(self) -> dict[str, tuple[Extent, ...]]:
        """Return the most blocks that any routing takes: all experts but for one slot each."""
        pairs = Extent("tokens", self.top_k)
        if not self.block_size:
            return {SLOTS: (pairs,)}
        spare = self.experts * (self.block_size - 1)
        blocks = (pairs, Extent("tokens", self.top_k, plus=spare, per=self.block_size))
        return {
            SLOTS: tuple(extent.times_each(self.block_size) for extent in blocks),
            BLOCKS: blocks,
        }


class MoeAlignBlockSizeOperator(Operator[MoeAlignBlockSize]):
    """The operator object of `MoeAlignBlockSize`."""

    name = "moe_align_block_size"
    summary = "sort (token, slot) pairs by expert, padded to blocks, or with offsets"
    problem = MoeAlignBlockSize

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        outputs = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "expert_offsets")
        return ("topk_ids", "expert_map", "workspace", *outputs)

    def arguments(self, problem: MoeAlignBlockSize) -> tuple[Argument, ...]:
        """Describe every tensor."""
        here = Argument("expert_map", (problem.num_experts,), "int32", "input")
        if problem.block_size:
            rest = [
                Argument("expert_ids", (BLOCKS,), "int32", "output"),
                Argument("num_tokens_post_padded", (1,), "int32", "output"),
            ]
        else:
            rest = [Argument("expert_offsets", (problem.experts + 1,), "int32", "output")]
        return (
            Argument("topk_ids", ("tokens", problem.top_k), "int32", "input"),
            *([here] if problem.local_experts else []),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
            Argument("sorted_token_ids", (SLOTS,), "int32", "output"),
            *rest,
        )

    def make_inputs(self, problem: MoeAlignBlockSize, rng: np.random.Generator) -> dict[str, Array]:
        """Draw routing, and which experts are here."""
        return {"topk_ids": experts.route(problem), **self._map(problem, rng)}

    def verification_inputs(
        self, problem: MoeAlignBlockSize, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw padding, ids of no expert, repeated ones; most pairs are of one expert."""
        ids = experts.hard_routes(problem, rng)
        flat = ids.reshape(-1)
        flat[rng.random(flat.size) < 0.1] = problem.num_experts
        flat[rng.random(flat.size) < 0.05] = np.iinfo(np.int32).max
        flat[rng.random(flat.size) < 0.05] = np.iinfo(np.int32).min
        flat[rng.random(flat.size) < 0.3] = problem.num_experts // 2
        return {"topk_ids": ids, **self._map(problem, rng)}

    def _map(self, problem: MoeAlignBlockSize, rng: np.random.Generator) -> dict[str, Array]:
        if not problem.local_experts:
            return {}
        found = np.full(problem.num_experts, -1, np.int32)
        chosen = rng.permutation(problem.num_experts)[: problem.local_experts]
        found[chosen] = np.arange(problem.local_experts)
        return {"expert_map": found}

    def reference(
        self, problem: MoeAlignBlockSize, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Sort the pairs, stably."""
        ids = inputs["topk_ids"].reshape(-1).astype(np.int64)
        known = (ids >= 0) & (ids < problem.num_experts)
        expert = np.where(known, ids, -1)
        if "expert_map" in inputs:
            expert = np.where(known, inputs["expert_map"][np.where(known, ids, 0)], -1)
        here = np.flatnonzero((expert >= 0) & (expert < problem.experts))
        order = here[np.argsort(expert[here], kind="stable")]
        counts = np.bincount(expert[here], minlength=problem.experts)
        block = max(1, problem.block_size)
        padded = -(-counts // block) * block
        ends, starts = np.cumsum(padded), np.cumsum(padded) - padded
        sizes = derived_sizes(problem.derived, {"tokens": len(inputs["topk_ids"])})
        sorted_ids = np.full(sizes[SLOTS], len(ids), np.int32)
        within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        sorted_ids[np.repeat(starts, counts) + within] = order
        if not problem.block_size:
            offsets = np.concatenate([[0], ends]).astype(np.int32)
            return {"sorted_token_ids": sorted_ids, "expert_offsets": offsets}
        expert_ids = np.zeros(sizes[BLOCKS], np.int32)
        blocks = np.repeat(np.arange(problem.experts), padded // block)
        expert_ids[: len(blocks)] = blocks
        return {
            "sorted_token_ids": sorted_ids,
            "expert_ids": expert_ids,
            "num_tokens_post_padded": ends[-1:].astype(np.int32),
        }

    def work(self, problem: MoeAlignBlockSize) -> Work:
        """Count a pair's counting and placing; ids are read, and all results written, once."""
        pairs = problem.tokens * problem.top_k
        sizes = problem.extents
        return Work(2 * pairs, 4 * (pairs + sum(sizes[name] for name in problem.derived)))

    def tolerance(self, problem: MoeAlignBlockSize, output: str) -> Tolerance:
        """All results are exact."""
        return Tolerance(0.0, 0.0, "integers")

    def examples(self) -> tuple[MoeAlignBlockSize, ...]:
        """Return a batch that shares experts, and one that hardly does."""
        return (MoeAlignBlockSize(16, 256, 8), MoeAlignBlockSize(512, 256, 8))

    def parse_shape(self, text: str, **fields: Any) -> MoeAlignBlockSize:
        """Read ``TOKENSxEXPERTSxTOP_K``."""
        names = ("tokens", "num_experts", "top_k")
        return MoeAlignBlockSize(**sizes_of(self.name, names, text), **fields)


MOE_ALIGN_BLOCK_SIZE = MoeAlignBlockSizeOperator()
