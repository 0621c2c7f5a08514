"""A decoding step of a small MiMo-V2-Flash: attention and experts, tuned, exported, predicted, run.

python examples/moe_step.py [--minutes 3] [--threads N] [--experts 16] [--layers 2]

Layers take turns between global and sliding-window attention, each with its own caches and int4
experts, all of which come from memory. Attention and experts are one library. Tuning and running
are separate processes, as they would be in use; the step's measured milliseconds are printed beside
the predicted ones.
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

FOLDER = Path(".moe-step")
HIDDEN, INNER, TOP_K = 4096, 2048, 8
CONTEXT, WINDOW = 8192, 128
STEPS = 9


def problems(experts: int) -> list[Any]:
    """Return global attention, sliding attention and experts, at the model's sizes."""
    from wattune.ops import DecodeAttention, FusedMoe

    return [
        DecodeAttention(1, CONTEXT, 64, 4, 192, value_dim=128),
        DecodeAttention(1, CONTEXT, 64, 8, 192, value_dim=128, window=WINDOW, sinks=True),
        FusedMoe(1, experts, TOP_K, HIDDEN, INNER, format="int4"),
    ]


def tune(minutes: float, threads: int | None, experts: int, layers: int) -> None:
    """Tune the three problems and export one library."""
    import wattune as wt

    target, parts = wt.Target.native(threads), problems(experts)
    slides = layers // 2
    counts = dict(zip(parts, (layers - slides, slides, layers), strict=True))
    report = wt.tune(
        parts, target, FOLDER / "tuned.sqlite", trials=96, minutes=minutes, multiplicity=counts
    )
    for part in report.problems:
        selected, default = part.selected, part.default
        assert selected is not None
        assert default is not None
        milliseconds = f"{1e3 * selected.latency:.2f} ms, default {1e3 * default.latency:.2f} ms"
        print(f"{part.multiplicity} x {part.problem}: {milliseconds}")
    total = report.ms_per_token
    (FOLDER / "total.json").write_text(json.dumps(total.to_json()))
    wt.compile(parts, target, FOLDER / "tuned.sqlite").export(FOLDER / "kernels.so")


def step(experts: int, layers: int) -> None:
    """Load the library, run steps, and compare with what was predicted."""
    import wattune as wt
    from wattune.ops import operator

    kernels = wt.load(FOLDER / "kernels.so")
    wide, sliding, moe = problems(experts)
    rng = np.random.default_rng(0)
    calls: list[Any] = []
    for layer in range(layers):
        attention = sliding if layer % 2 else wide
        drawn = operator(attention.operator).make_inputs(attention, rng)
        routed = operator(moe.operator).make_inputs(moe, rng)
        packed = kernels.fused_moe.pack(routed.pop("gate_up_proj"), routed.pop("down_proj"))
        calls.append((drawn, packed, routed, {"window": attention.window}))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        for drawn, packed, routed, fields in calls:
            kernels.decode_attention(**drawn, **fields)
            kernels.fused_moe(packed, **routed)
        seconds.append(time.perf_counter() - start)
    total = json.loads((FOLDER / "total.json").read_text())
    print(
        f"{layers} layers: predicted {total['predicted']:.2f} ms a token, the sum of measured "
        f"kernels {total['measured']:.2f} ms, a measured step {1e3 * median(seconds):.2f} ms"
    )


def main() -> int:
    """Tune in one process, run in another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for tuning")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--experts", type=int, default=16, help="of each layer; the model has 256")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        step(options.experts, options.layers)
        return 0
    FOLDER.mkdir(exist_ok=True)
    tune(options.minutes, options.threads, options.experts, options.layers)
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--run"]).returncode


if __name__ == "__main__":
    sys.exit(main())
