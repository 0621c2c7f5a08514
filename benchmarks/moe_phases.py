"""What each phase of a mixture-of-experts layer costs: gate, top-k, rows, both products, the sum.

The layer is MiMo-V2-Flash's. Its router has all experts; of their weights there are as many as
`--experts`, so that fewer are read than in the model and the share of routing is overstated. The
gate, the routing and each phase of the experts are kernels of their own that work on what a whole
call left in the workspace; they and the whole layer are timed in turn. Weights come from memory: a
call's experts are far larger than the last cache. `align` is the operator of that name, which the
experts do not need: `route` orders their pairs. Writes a JSON file with the read bandwidth of the
same run.

    python benchmarks/moe_phases.py --format bf16 --experts 32 --tokens 1,8 --threads 1
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.memory import pages
from wattune.ops import FusedMoe, MoeAlignBlockSize, MoeGate, MoeTopk, Problem, operator
from wattune.ops.expert_weights import random_words
from wattune.ops.experts import touched
from wattune.schedules.cpu.grouped_gemm.base import ExpertTemplate
from wattune.schedules.host import device_name
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

EXPERTS, TOP_K, HIDDEN = 256, 8, 4096
PHASES = ("route", "prepare", "gemm1", "activate", "gemm2", "combine")
RESULTS = Path(__file__).with_name("results")
OPERATOR = operator("fused_moe")
FILL = 64 << 20


def filled(size: int) -> Any:
    """Return memory on huge pages full of valid weights."""
    memory, tile = pages(size, huge=True), random_words(FILL, 0)
    for start in range(0, size, FILL):
        memory[start : start + FILL] = tile[: size - start]
    return memory


class Kernels:
    """Kernels of one schedule of a problem, the default one, and the tensors they share."""

    def __init__(
        self,
        problem: Problem,
        target: Target,
        packed: dict[str, Any],
        values: Mapping[str, Value] | None = None,
    ) -> None:
        """Draw inputs; ``packed`` keeps weights for the next problem."""
        import torch
        from tvm_ffi import from_dlpack

        self.target, self.problem, op = target, problem, operator(problem.operator)
        self.template = templates_for(problem, target)[0]
        self.values = values or self.template.space(problem, target).default()
        sizes = {**problem.extents, **self.template.sizes(problem, target, self.values)}
        inputs = op.timing_inputs(problem, np.random.default_rng(0))
        self.tensors = []
        for argument in op.arguments(problem):
            shape = argument.concrete(sizes)
            if argument.role == "packed":
                name = f"{problem.operator}.{argument.name}"
                if name not in packed:
                    packed[name] = filled(int(shape[0]))
                self.tensors.append(from_dlpack(packed[name]))
            elif argument.role == "workspace":
                self.tensors.append(from_dlpack(pages(int(shape[0]), huge=True)))
            else:
                kind = "float32" if argument.dtype == "bfloat16" else argument.dtype
                data = inputs.get(argument.name, np.zeros(shape, kind)).astype(kind)
                tensor = torch.from_numpy(data).to(getattr(torch, argument.dtype))
                self.tensors.append(from_dlpack(tensor))

    def compiled(self, function: Any) -> Callable[[], None]:
        """Return a call of a kernel on the tensors."""
        import tvm

        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        kernel = tvm.tirx.build(module, tvm.target.Target(self.target.llvm()))["main"]
        return lambda: kernel(*self.tensors)

    def whole(self) -> Callable[[], None]:
        """Return a call of the problem's kernel."""
        return self.compiled(self.template.lower(self.problem, self.target, self.values))

    def phase(self, name: str) -> Callable[[], None]:
        """Return a call of one phase of experts."""
        assert isinstance(self.template, ExpertTemplate)
        function = self.template.lower_phase(self.problem, self.target, self.values, name)
        return self.compiled(function)


def seconds_of(calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call; they take turns, of which the first is left out."""
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                runs[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in runs.items()}


def layer(problem: FusedMoe, target: Target, packed: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Measure one layer."""
    tokens, threads = problem.tokens, target.threads
    gate = MoeGate(tokens, EXPERTS, HIDDEN)
    before: dict[str, Problem] = {
        "gate": gate,
        "topk": MoeTopk(tokens, EXPERTS, TOP_K, e_score_correction_bias=True),
        "align": MoeAlignBlockSize(tokens, EXPERTS, TOP_K),
    }
    alone = {name: Kernels(p, target, packed).whole() for name, p in before.items()}
    experts = Kernels(problem, target, packed)
    fused = experts.whole()

    def whole() -> None:
        alone["gate"]()
        alone["topk"]()
        fused()

    phases = {name: experts.phase(name) for name in PHASES}
    seconds = seconds_of({"layer": whole, "experts": fused, **alone, **phases}, rounds)
    total = seconds.pop("layer")
    moved = OPERATOR.work(problem).bytes
    # The better of two, as one may be disturbed.
    limit = max(read_bandwidth_at(moved, threads) for _ in range(2))
    routing = sum(seconds[name] for name in ("topk", "route", "combine"))
    both = moved + operator("moe_gate").work(gate).bytes
    return {
        "problem": problem.to_json(),
        "threads": threads,
        "distinct_experts": touched(problem),
        "seconds": seconds,
        "layer_seconds": total,
        "gbps": both / total / 1e9,
        "gate_gbps": operator("moe_gate").work(gate).bytes / seconds["gate"] / 1e9,
        "read_gbps": limit,
        "share_of_topk_route_combine": routing / total,
        "share_with_gate": (routing + seconds["gate"]) / total,
        "align_over_gate_topk_align": seconds["align"] / sum(seconds[name] for name in before),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.environ.update(TVM_NUM_THREADS=str(options.threads), TVM_BIND_THREADS="0")
    target, rows = Target.native(options.threads), []
    packed: dict[str, Any] = {}
    for tokens in map(int, options.tokens.split(",")):
        problem = FusedMoe(tokens, options.experts, TOP_K, HIDDEN, 2048, format=options.format)
        row = layer(problem, target, packed, options.rounds)
        rows.append(row)
        times = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in row["seconds"].items())
        rate = f"{row['gbps']:.1f} of {row['read_gbps']:.1f} GB/s"
        share = f"top-k, route and combine {100 * row['share_of_topk_route_combine']:.2f} %"
        print(f"{problem}: {times}; layer {1e6 * row['layer_seconds']:.0f} us, {rate}, {share}")
    path = results_file(RESULTS, "moe-phases", device_name())
    write_rows(path, {"machine": describe_machine(target)}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
