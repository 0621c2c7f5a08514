"""What each phase of a mixture-of-experts layer costs: routing, rows, both products, the sum.

The layer is MiMo-V2-Flash's, with as many experts as `--experts`. Each phase is a kernel of its own
that works on what a whole call left in the workspace; they and the whole are timed in turn. Weights
come from memory: a call's experts are far larger than the last cache. Writes a JSON file with the
read bandwidth of the same run.

    python benchmarks/moe_phases.py --format bf16 --experts 32 --tokens 1,8 --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.memory import pages
from wattune.ops import FusedMoe, operator
from wattune.ops.expert_weights import random_words
from wattune.ops.experts import touched
from wattune.schedules.cpu.grouped_gemm.base import ExpertTemplate
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

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


class Layer:
    """One problem's kernels, of each phase and of all, and the tensors they share."""

    def __init__(self, problem: FusedMoe, target: Target, packed: dict[str, Any]) -> None:
        """Compile with the default schedule; ``packed`` keeps weights for the next problem."""
        import torch
        import tvm
        from tvm_ffi import from_dlpack

        template = templates_for(problem, target)[0]
        assert isinstance(template, ExpertTemplate)
        values = template.space(problem, target).default()
        sizes = {**problem.extents, **template.sizes(problem, target, values)}
        inputs = OPERATOR.timing_inputs(problem, np.random.default_rng(0))
        self.tensors = []
        for argument in OPERATOR.arguments(problem):
            shape = argument.concrete(sizes)
            if argument.role == "packed":
                if argument.name not in packed:
                    packed[argument.name] = filled(int(shape[0]))
                self.tensors.append(from_dlpack(packed[argument.name]))
            elif argument.role == "workspace":
                self.tensors.append(from_dlpack(pages(int(shape[0]), huge=True)))
            else:
                data = inputs.get(argument.name, np.zeros(shape, np.float32))
                kind = np.float32 if argument.dtype == "bfloat16" else data.dtype
                tensor = torch.from_numpy(data.astype(kind))
                self.tensors.append(from_dlpack(tensor.to(getattr(torch, argument.dtype))))
        self.kernels = {}
        for phase in ("", *PHASES):
            function = template.lower_phase(problem, target, values, phase)
            module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
            built = tvm.tirx.build(module, tvm.target.Target(target.llvm()))
            self.kernels[phase] = built["main"]

    def seconds(self, rounds: int) -> dict[str, float]:
        """Return the median seconds of each phase, and of all ("")."""
        runs: dict[str, list[float]] = {phase: [] for phase in self.kernels}
        for number in range(rounds + 1):
            for phase, kernel in self.kernels.items():
                start = time.perf_counter()
                kernel(*self.tensors)
                if number:
                    runs[phase].append(time.perf_counter() - start)
        return {phase: median(times) for phase, times in runs.items()}


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
        problem = FusedMoe(tokens, options.experts, 8, 4096, 2048, format=options.format)
        seconds = Layer(problem, target, packed).seconds(options.rounds)
        whole, moved = seconds.pop(""), OPERATOR.work(problem).bytes
        gbps = read_bandwidth_at(moved, options.threads)
        small = seconds["route"] + seconds["combine"]
        rows.append(
            {
                "problem": problem.to_json(),
                "threads": options.threads,
                "distinct_experts": touched(problem),
                "seconds": seconds,
                "whole_seconds": whole,
                "gbps": moved / whole / 1e9,
                "read_gbps": gbps,
                "share_of_routing_and_combine": small / whole,
            }
        )
        times = ", ".join(f"{name} {1e6 * value:.0f} us" for name, value in seconds.items())
        rate = f"{moved / whole / 1e9:.1f} of {gbps:.1f} GB/s"
        print(f"{problem}: {times}; {1e6 * whole:.0f} us, {rate}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = f"{time.strftime('%Y-%m-%d')}-moe-phases-{options.format}-{options.threads}t.json"
    path, found = RESULTS / name, {"machine": describe_machine(target), "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{path} written")


if __name__ == "__main__":
    main()
