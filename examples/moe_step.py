"""A decoding step of the first layers of MiMo-V2-Flash: attention, gate, routing, int4 experts.

python examples/moe_step.py [--minutes 3] [--threads N] [--layers 3] [--experts 16] [--json FILE]

The layers are those of `mimo-v2-flash.json`, cut to as many as fit; each has its own caches and
experts, all of which come from memory. Operators are tuned by what the model says of them
(`wattune tune --model` does the same), exported as one library, and called layer by layer in a
process of its own. Linear layers beside the experts are left out. The step's measured milliseconds
are printed beside three others: the bytes that must move over the bandwidth of the same run, what
the cost model predicts of the schedules, and the sum of the kernels measured alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

MODEL = Path(__file__).with_name("mimo-v2-flash.json")
FOLDER = Path(".moe-step")
CONTEXT = 8192
STEPS = 9


def layers(count: int, experts: int) -> list[Any]:
    """Return the problems of the first layers, with how many layers have each and which."""
    from wattune.compiler.models import Step, problems_from_config

    config = json.loads(MODEL.read_text())
    config |= {"num_hidden_layers": count, "n_routed_experts": experts}
    for name in ("hybrid_layer_pattern", "moe_layer_freq"):
        config[name] = config[name][:count]
    return problems_from_config(config, step=Step(experts="int4", context={CONTEXT: 1.0}))


def tune(options: argparse.Namespace) -> None:
    """Tune all problems, print what became of each, export one library."""
    import wattune as wt

    found = layers(options.layers, options.experts)
    target, problems = wt.Target.native(options.threads), [part.problem for part in found]
    report = wt.tune(
        problems,
        target,
        FOLDER / "tuned.sqlite",
        trials=40 * len(problems),
        minutes=options.minutes,
        multiplicity={part.problem: part.multiplicity for part in found},
    )
    for part in report.problems:
        selected, default = part.selected, part.default
        assert selected is not None
        assert default is not None
        times = f"{1e6 * selected.latency:.0f} us, default {1e6 * default.latency:.0f} us"
        print(f"{part.multiplicity} x {part.problem}: {times}")
    parts = [part.to_json() for part in report.problems]
    kept = ("problem", "multiplicity", "default_seconds", "selected_seconds", "predicted_seconds")
    found_parts = [{name: part[name] for name in kept} for part in parts]
    total = {**report.ms_per_token.to_json(), "problems": found_parts}
    (FOLDER / "total.json").write_text(json.dumps(total))
    wt.compile(problems, target, FOLDER / "tuned.sqlite").export(FOLDER / "kernels.so")


class Layer:
    """One call of an operator in a step: its inputs, drawn, and its weights, packed."""

    def __init__(self, kernels: Any, problem: Any, rng: np.random.Generator) -> None:
        """Draw everything anew: no layer finds the last one's data in a cache."""
        from wattune.ops import operator

        op = operator(problem.operator)
        self.kernel = getattr(kernels, problem.operator)
        self.inputs = op.make_inputs(problem, rng)
        self.packed: list[Any] = []
        sources = [a.source.name for a in op.arguments(problem) if a.source is not None]
        if sources:
            self.packed = [self.kernel.pack(**{name: self.inputs.pop(name) for name in sources})]
        if problem.operator == "decode_attention":
            self.inputs["window"] = problem.window

    def __call__(self, **changed: Any) -> Any:
        """Call the kernel, with some inputs of an earlier call's making."""
        return self.kernel(*self.packed, **{**self.inputs, **changed})


def run(options: argparse.Namespace) -> None:
    """Load the library, run steps, and compare with what was predicted."""
    import wattune as wt

    kernels, rng = wt.load(FOLDER / "kernels.so"), np.random.default_rng(0)
    found = layers(options.layers, options.experts)
    stack = []
    for block in range(options.layers):
        mine = [p.problem for p in found if any(f".{block}." in name for name in p.layer_names)]
        stack.append({problem.operator: Layer(kernels, problem, rng) for problem in mine})
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        for layer in stack:
            layer["kv_cache_append"]()
            layer["decode_attention"]()
            if "fused_moe" in layer:
                shares, ids = layer["moe_topk"](gating_output=layer["moe_gate"]())
                layer["fused_moe"](topk_weights=shares, topk_ids=ids)
        seconds.append(time.perf_counter() - start)
    total = {
        **json.loads((FOLDER / "total.json").read_text()),
        **least(found, options.threads),
        "step": 1e3 * median(seconds),
        "least_step": 1e3 * min(seconds),
    }
    print(
        f"{options.layers} layers, milliseconds a token: bytes over bandwidth "
        f"{total['bytes_ms']:.2f}, predicted {total['predicted']:.2f}, the sum of measured kernels "
        f"{total['measured']:.2f}, a step {total['step']:.2f} (least {total['least_step']:.2f})"
    )
    if options.json:
        write(options, total)


def least(found: list[Any], threads: int | None) -> dict[str, float]:
    """Return the bytes that a token moves, and their milliseconds at the bandwidth of this run."""
    import wattune as wt
    from wattune.compiler.measure.limits import read_bandwidth_at
    from wattune.ops import operator

    moved = sum(p.multiplicity * operator(p.problem.operator).work(p.problem).bytes for p in found)
    count = wt.Target.native(threads).threads
    # The best of a few: one may be disturbed.
    gbps = max(read_bandwidth_at(max(moved, 512 << 20), count) for _ in range(5))
    return {"bytes": moved, "read_gbps": gbps, "bytes_ms": moved / gbps / 1e6}


def write(options: argparse.Namespace, total: dict[str, Any]) -> None:
    """Add a row to a file of results: of other numbers of threads it keeps theirs."""
    import wattune as wt
    from wattune.compiler.bench.machine import describe_machine
    from wattune.compiler.bench.results import write_rows

    target = wt.Target.native(options.threads)
    sizes = {"layers": options.layers, "experts": options.experts, "context": CONTEXT}
    row = {"problem": {"model": MODEL.name, **sizes}, "threads": target.threads}
    write_rows(
        options.json, {"machine": describe_machine(target)}, [{**row, "ms_per_token": total}]
    )


def main() -> int:
    """Tune in one process, run in another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for tuning")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--layers", type=int, default=3, help="the first one has no experts")
    parser.add_argument("--experts", type=int, default=16, help="of each layer; the model has 256")
    parser.add_argument("--json", type=Path, help="file of results to add this to")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options)
        return 0
    FOLDER.mkdir(exist_ok=True)
    tune(options)
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--run"]).returncode


if __name__ == "__main__":
    sys.exit(main())
