"""What each phase of a mixture-of-experts layer costs: gate, top-k, rows, both products, the sum.

The layer is MiMo-V2-Flash's. Its router has all experts; of their weights there are as many as
`--experts`, so that fewer are read than in the model and the share of routing is overstated. The
gate, the routing and each phase of the experts are kernels of their own that work on what a whole
call left in the workspace; they and the whole layer are timed in turn. Weights come from memory: a
call's experts are far larger than the last cache. `align` is the operator of that name, which the
experts do not need: `route` orders their pairs. `of_limit` is the experts' rate over that of
reading memory right before and right after each block of calls, as the machine's rate may change
within a minute: its median over the blocks, and the least and the most. Writes a JSON file.

    python -m benchmarks.moe_phases --format bf16 --experts 32 --tokens 1,8 --threads 1
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.kept import Kept, add_options, kept_in

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.measure.amx import allow_amx
from wattune.compiler.measure.limits import ReadMeter
from wattune.compiler.measure.memory import pages
from wattune.compiler.measure.pool import LEAST_FOOTPRINT
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
# Calls of a block take at least so long, as does each of the ways to read before and after it.
BLOCK_SECONDS, READ_SECONDS = 0.1, 0.03


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
        kept: Kept | None = None,
    ) -> None:
        """Take what is to be compiled; ``packed`` keeps weights for the next problem."""
        if target.has("amx_tile"):
            allow_amx()
        self.target, self.problem, self.packed, self.kept = target, problem, packed, kept
        self.template = templates_for(problem, target)[0]
        self.values = values or self.template.space(problem, target).default()

    @cached_property
    def tensors(self) -> list[Any]:
        """Draw inputs."""
        import torch
        from tvm_ffi import from_dlpack

        problem, op = self.problem, operator(self.problem.operator)
        sizes = {**problem.extents, **self.template.sizes(problem, self.target, self.values)}
        inputs = op.timing_inputs(problem, np.random.default_rng(0))
        tensors = []
        for argument in op.arguments(problem):
            shape = argument.concrete(sizes)
            if argument.role == "packed":
                name = f"{problem.operator}.{argument.name}"
                if name not in self.packed:
                    self.packed[name] = filled(int(shape[0]))
                tensors.append(from_dlpack(self.packed[name]))
            elif argument.role == "workspace":
                tensors.append(from_dlpack(pages(int(shape[0]), huge=True)))
            else:
                kind = "float32" if argument.dtype == "bfloat16" else argument.dtype
                data = inputs.get(argument.name, np.zeros(shape, kind)).astype(kind)
                tensor = torch.from_numpy(data).to(getattr(torch, argument.dtype))
                tensors.append(from_dlpack(tensor))
        return tensors

    def compiled(self, name: str, lower: Callable[[], Any]) -> Callable[[], None]:
        """Return a call of a kernel on the tensors."""
        import tvm

        if self.kept is None:
            module = tvm.IRModule({"main": lower().with_attr("global_symbol", "main")})
            kernel = tvm.tirx.build(module, tvm.target.Target(self.target.llvm()))["main"]
        else:
            made_of = self.template, self.problem, self.target, self.values
            kernel = tvm.runtime.load_module(str(self.kept.path(name, *made_of, lower)))["main"]
        return lambda: kernel(*self.tensors)

    def whole(self) -> Callable[[], None]:
        """Return a call of the problem's kernel."""
        arguments = self.problem, self.target, self.values
        return self.compiled(self.problem.operator, lambda: self.template.lower(*arguments))

    def phase(self, name: str) -> Callable[[], None]:
        """Return a call of one phase of experts."""
        template, arguments = self.template, (self.problem, self.target, self.values)
        assert isinstance(template, ExpertTemplate)
        return self.compiled(name, lambda: template.lower_phase(*arguments, name))


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


def of_limit(call: Callable[[], None], moved: float, threads: int, blocks: int) -> dict[str, Any]:
    """Read memory, call, read memory, and so on: a block's rate over that around it."""
    meter, shares = ReadMeter(LEAST_FOOTPRINT), []
    call()
    reads = [meter.gbps(LEAST_FOOTPRINT, threads, READ_SECONDS)]
    for _ in range(blocks):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < BLOCK_SECONDS:
            call()
            calls += 1
        seconds = (time.perf_counter() - start) / calls
        reads.append(meter.gbps(LEAST_FOOTPRINT, threads, READ_SECONDS))
        shares.append(moved / seconds / 1e9 / ((reads[-2] + reads[-1]) / 2))
    return {
        "read_gbps": median(reads),
        "of_limit": {"median": median(shares), "min": min(shares), "max": max(shares)},
        "blocks": blocks,
    }


class Layer:
    """The kernels of one layer, compiled."""

    def __init__(self, problem: FusedMoe, target: Target, packed: dict[str, Any], kept: Kept):
        """Compile them."""
        self.problem, self.threads, tokens = problem, target.threads, problem.tokens
        self.gate = MoeGate(tokens, EXPERTS, HIDDEN)
        before: dict[str, Problem] = {
            "gate": self.gate,
            "topk": MoeTopk(tokens, EXPERTS, TOP_K, e_score_correction_bias=True),
            "align": MoeAlignBlockSize(tokens, EXPERTS, TOP_K),
        }
        self.before = {n: Kernels(p, target, packed, kept=kept).whole() for n, p in before.items()}
        experts = Kernels(problem, target, packed, kept=kept)
        self.experts = experts.whole()
        self.phases = {name: experts.phase(name) for name in PHASES}

    def whole(self) -> None:
        """Call the gate, top-k and the experts."""
        self.before["gate"]()
        self.before["topk"]()
        self.experts()

    def row(self, rounds: int, blocks: int) -> dict[str, Any]:
        """Measure."""
        calls = {"layer": self.whole, "experts": self.experts, **self.before, **self.phases}
        seconds = seconds_of(calls, rounds)
        total = seconds.pop("layer")
        moved = OPERATOR.work(self.problem).bytes
        gate = operator("moe_gate").work(self.gate).bytes
        routing = sum(seconds[name] for name in ("topk", "route", "combine"))
        gated = sum(seconds[name] for name in self.before)
        return {
            "problem": self.problem.to_json(),
            "threads": self.threads,
            "distinct_experts": touched(self.problem),
            "seconds": seconds,
            "layer_seconds": total,
            "gbps": (moved + gate) / total / 1e9,
            "gate_gbps": gate / seconds["gate"] / 1e9,
            **of_limit(self.experts, moved, self.threads, blocks),
            "share_of_topk_route_combine": routing / total,
            "share_with_gate": (routing + seconds["gate"]) / total,
            "align_over_gate_topk_align": seconds["align"] / gated,
        }


def shown(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    times = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in row["seconds"].items())
    share, problem = row["of_limit"], FusedMoe.from_json(row["problem"])
    return (
        f"{problem}: {times}; layer {1e6 * row['layer_seconds']:.0f} us, "
        f"{row['gbps']:.1f} of {row['read_gbps']:.1f} GB/s; experts {share['median']:.2f} of the "
        f"limit ({share['min']:.2f} to {share['max']:.2f}), top-k, route and combine "
        f"{100 * row['share_of_topk_route_combine']:.2f} %"
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--blocks", type=int, default=9, help="of calls, reading in between")
    add_options(parser)
    options = parser.parse_args()
    os.environ.update(TVM_NUM_THREADS=str(options.threads), TVM_BIND_THREADS="0")
    target, rows = Target.native(options.threads), []
    packed: dict[str, Any] = {}
    sizes = options.experts, TOP_K, HIDDEN, 2048
    problems = [FusedMoe(int(t), *sizes, format=options.format) for t in options.tokens.split(",")]
    with kept_in(parser, options) as kept:
        layers = [Layer(problem, target, packed, kept) for problem in problems]
        if options.compile:
            return
        for layer in layers:
            rows.append(row := layer.row(options.rounds, options.blocks))
            print(shown(row), flush=True)
    path = results_file(RESULTS, "moe-phases", device_name())
    write_rows(path, {"machine": describe_machine(target)}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
