"""Template of `select_union`: every head's best tokens, sorted; then one list for all heads.

# rank: for request, head
the bound of the best n_mid logits between the first and the last tokens
sort (key, token) of what reaches it; the tokens in this order go to the workspace
# unite: for request, union
for places of the lists, rank by rank, as many as there are threads at once:
    a hash table keeps the first place of each token
    tokens whose first place this is are taken in order, until n_mid are
sort the tokens; write the first ones, these, the last ones
"""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.select_union import SelectUnion
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Kernel, PlainTemplate, overlap_knob
from wattune.schedules.cuda.selection.base import STATIC_SHARED
from wattune.schedules.cuda.selection.radix import Radix
from wattune.schedules.cuda.selection.rank_kernel import Rank
from wattune.schedules.cuda.selection.unite_kernel import Unite
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_PLACES = ("shared", "workspace")


class SelectUnionGpu(PlainTemplate):
    """Radix selection, bitonic networks, a hash table."""

    name = "select_union_gpu"
    operator = "select_union"

    def applies(self, problem: SelectUnion, target: Target) -> bool:
        """Say yes."""
        return True

    def space(self, problem: SelectUnion, target: Target) -> Space:
        """Knobs: threads, bits of a digit, histograms, where lists are sorted, overlap."""
        knobs = (
            Knob("threads", (128, 256, 512, 1024), 512),
            Knob("digit_bits", (8, 11), 8),
            Knob("histograms", (1, 2, 4), 2),
            Knob("lists", _PLACES, "shared"),
            overlap_knob(target),
        )
        rule = Constraint(
            f"lists and tables must fit in {STATIC_SHARED} bytes of shared memory",
            lambda v: self._shared(problem, v) <= STATIC_SHARED,
        )
        return Space(self.name, knobs, (rule,))

    def _parts(self, problem: SelectUnion, values: Mapping[str, Value]) -> tuple[Rank, Unite]:
        threads, bits, copies = (int(values[n]) for n in ("threads", "digit_bits", "histograms"))
        inside = values["lists"] == "shared"
        rank = Rank(problem, Radix(threads, bits, copies), inside)
        return rank, Unite(problem, threads, inside, rank.bytes)

    def _shared(self, problem: SelectUnion, values: Mapping[str, Value]) -> int:
        return max(part.shared for part in self._parts(problem, values))

    def sizes(
        self, problem: SelectUnion, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the ranked lists, and of what is sorted where that is not shared memory."""
        return {"workspace_bytes": self._parts(problem, values)[1].bytes}

    def kernels(
        self, problem: SelectUnion, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the heads' kernel, and that of the unions."""
        rank, unite = self._parts(problem, values)
        return {
            "rank": Kernel(unite.threads, rank.blocks, rank.emit, shared=rank.shared),
            "unite": Kernel(
                unite.threads,
                unite.blocks,
                unite.emit,
                overlaps=bool(values["overlap"]),
                shared=unite.shared,
            ),
        }

    def kernel_counts(
        self, problem: SelectUnion, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the passes over logits, and what sorting moves."""
        rank, unite = self._parts(problem, values)
        rows = float(problem.batch * problem.query_heads)
        lists = float(problem.batch * problem.unions)
        logits = rows * problem.context
        passes = 2 + rank.radix.passes
        ranked = 2 * 4 * rows * problem.middle
        sorting = rows * rank.moved + lists * unite.moved
        near = 0.0 if rank.inside else sorting
        written = 4 * lists * (problem.token_budget + 1)
        return Counts(
            bytes={
                "memory": 4 * logits + written,
                "l2": 4 * logits * passes + ranked + near + written,
                "l1": 4 * logits * passes + ranked + sorting,
            },
            operations={"alu": (10 * logits * passes + 2 * sorting + 20 * ranked) / WARP},
            tiles={"threads": float(unite.threads), "middle": float(problem.middle)},
            parallelism=rows,
            registers=48.0,
            code=400.0,
        )
