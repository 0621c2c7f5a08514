"""Tunes a BitNet model's ternary layers, exports them, and compares them with torch.

python examples/demo.py [--minutes 2] [--threads N]

Tuning, exporting and comparing are separate processes, as they would be in use: the last one
loads the library without TVM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

MODEL = Path(__file__).with_name("bitnet-b1.58-2b.json")
FOLDER = Path(".demo")
# Weights that calls rotate over, so that they come from memory as in decoding.
ROTATED_BYTES = 512 << 20
SECONDS = 1.0


def main() -> int:
    """Tune, report, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", default="2", help="for tuning")
    parser.add_argument("--threads", default="", help="default: all cores")
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        return compare()
    FOLDER.mkdir(exist_ok=True)
    model = ["--model", os.path.relpath(MODEL), "--attention", "none"]
    model += ["--db", str(FOLDER / "tuned.sqlite")]
    threads = ["--threads", options.threads] if options.threads else []
    commands = (
        ["tune", *model, *threads, "--minutes", options.minutes],
        ["report", *model, "-o", str(FOLDER / "report.html")],
        ["compile", *model, *threads, "-o", str(FOLDER / "kernels.so")],
    )
    for command in commands:
        if status := run("wattune", ["-m", "wattune.compiler.cli", *command], command):
            return status
    return run("python", [__file__, "--compare"], [os.path.relpath(__file__), "--compare"])


def run(program: str, words: list[str], shown: list[str]) -> int:
    """Run one step in a process of its own, after printing it as a user would type it."""
    print(f"\n$ {program} {' '.join(shown)}", flush=True)
    return subprocess.run([sys.executable, *words]).returncode


def compare() -> int:
    """Load the library and compare every layer shape with torch, in one table."""
    # What a deployment does not have.
    sys.modules["tvm"] = None  # type: ignore[assignment]
    import torch

    import wattune as wt
    from wattune.compiler.models import Step, problems_from_config

    kernels = wt.load(FOLDER / "kernels.so")
    manifest = json.loads((FOLDER / "kernels.json").read_text())
    torch.set_num_threads(manifest["target"]["threads"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, weights from memory\n")
    print(
        f"{'layer':>12} {'count':>6} {'wattune':>10} {'torch bf16':>11} {'speed':>7} {'error':>8}"
    )
    totals = np.zeros(2)
    for layer in problems_from_config(MODEL, step=Step(attention="none")):
        ours, theirs, error = compare_layer(torch, kernels.ternary_gemm, layer.problem)
        totals += layer.multiplicity * np.array([ours, theirs])
        shape = "x".join(str(layer.problem.to_json()[f"{side}_features"]) for side in ("out", "in"))
        times = f"{1e6 * ours:>7.1f} us {1e6 * theirs:>8.1f} us {theirs / ours:>6.1f}x"
        print(f"{shape:>12} {layer.multiplicity:>6} {times} {error:>8.1e}", flush=True)
    ours, theirs = 1e3 * totals
    print(f"\nall layers: {ours:.2f} ms per token, torch {theirs:.2f} ms: {theirs / ours:.1f}x")
    return 0


def compare_layer(torch: Any, kernel: Any, problem: Any) -> tuple[float, float, float]:
    """Return seconds of our kernel and of torch's bfloat16 linear, and our relative error."""
    rng = np.random.default_rng(0)
    shape = problem.out_features, problem.in_features
    weights = rng.integers(-1, 2, shape, dtype=np.int8)
    x = torch.from_numpy(rng.standard_normal((1, shape[1]), np.float32)).to(torch.bfloat16)
    packed = kernel.pack(weights, scale=0.5)
    y = kernel(x, packed)
    expected = bit_linear(torch, x, torch.from_numpy(weights), 0.5)
    error = float((y.float() - expected).norm() / expected.norm())
    copies = [
        replace(packed, data={name: array.copy() for name, array in packed.data.items()})
        for _ in range(ROTATED_BYTES // packed.nbytes + 1)
    ]
    dense = (torch.from_numpy(weights) * 0.5).to(torch.bfloat16)
    others = [dense.clone() for _ in range(ROTATED_BYTES // dense.nbytes + 1)]
    linear = torch.nn.functional.linear
    ours = median_seconds([lambda c=c: kernel(x, c, out=y) for c in copies])
    theirs = median_seconds([lambda w=w: linear(x, w) for w in others])
    return ours, theirs, error


def bit_linear(torch: Any, x: Any, weights: Any, scale: float) -> Any:
    """Compute what the layer means, in torch: activations quantised per token, then a product."""
    s = 127 / x.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-5)
    q = (x.float() * s).round().clamp(-128, 127)
    return (q.double() @ weights.double().T * scale / s.double()).float()


def median_seconds(calls: list[Any]) -> float:
    """Return the median time of calls that rotate over their data."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for call in calls:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    # The first round only touches the memory.
    return float(np.median(found[len(calls) :] or found))


if __name__ == "__main__":
    sys.exit(main())
