"""One command for all benchmarks: python benchmarks/run.py [OPERATOR ...] [--minutes 5] [--db ...].

Runs the routines of operators with ``wattune bench`` and writes their rows, with the machine's
description, to one dated file an operator in ``benchmarks/results/``. A routine that cannot run is
told and left out; the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattune.compiler import cli
from wattune.compiler.bench.results import results_file, write_runs
from wattune.schedules.host import device_name

RESULTS = Path(__file__).parent / "results"

Routine = dict[str, str | tuple[str, ...]]

# Operator -> routines: the options of one `wattune bench` each; a flag has no value.
ROUTINES: dict[str, tuple[Routine, ...]] = {
    "ternary_gemm": (
        {"mode": "cold", "shapes": "1x2560x2560,1x2560x6912,1x4096x4096,1x14336x4096"},
        {"mode": "hot", "shapes": "1x2560x2560,1x4096x4096,1x14336x4096,8x4096x4096"},
        {
            "mode": "hot",
            "shapes": "32x4096x4096,32x2560x6912,128x4096x4096,128x2560x6912,128x14336x4096",
            "field": "dtype=int8",
        },
    ),
    "decode_attention": (
        {"mode": "cold", "shapes": "1x32768x32x8x128"},
        {"mode": "hot", "shapes": "1x4096x32x8x128"},
        {"mode": "cold", "shapes": "1x4096x32x8x128,1x131072x32x8x128", "field": "window=128"},
        {"mode": "cold", "shapes": "8x4096x32x8x128", "ragged": ""},
    ),
    # 90 % sparse.
    "block_sparse_decode_attention": (
        {"mode": "cold", "shapes": "1x32768x32x8x128x52,1x131072x32x8x128x205"},
    ),
    "token_sparse_decode_attention": (
        {"mode": "cold", "shapes": "1x32768x32x8x128x2048"},
        {"mode": "cold", "shapes": "1x32768x32x8x128x2048", "field": "lists=head"},
    ),
    "quantized_decode_attention": tuple(
        {"mode": "cold", "shapes": "1x32768x32x8x128", "field": f"format={name}"}
        for name in ("int8", "int4", "int2")
    ),
    # Scores come from the kernel before: they are in a cache.
    "select_blocks": (
        {"mode": "hot", "shapes": "1x32768x8,1x131072x8"},
        {"mode": "hot", "shapes": "1x32768x8,1x131072x8", "field": "method=fraction"},
        {
            "mode": "hot",
            "shapes": "1x32768x8,1x131072x8",
            "field": ("method=fraction", "block_size=16"),
        },
    ),
    "block_score": (
        {"mode": "cold", "shapes": "1x32768x32x8x128,1x131072x32x8x128"},
        {
            "mode": "cold",
            "shapes": "1x32768x32x8x128,1x131072x32x8x128",
            "field": "block_size=64",
        },
    ),
    # As many experts of MiMo-V2-Flash as fit: three implementations hold them at once. With 32 of
    # its 256, 16 and 64 tokens give an expert the rows that 128 and 512 give it in the model.
    "fused_moe": tuple(
        {"mode": "cold", "shapes": shapes, "field": f"format={name}", "shared-layout": ""}
        for name in ("bf16", "int8", "int4")
        for shapes in (
            "1x32x8x4096x2048,8x32x8x4096x2048",
            "16x32x8x4096x2048,64x32x8x4096x2048",
            "128x32x8x4096x2048,512x32x8x4096x2048",
        )
    ),
    # The gates of MiMo-V2-Flash and of DeepSeek-V3; the weight comes from memory.
    "moe_gate": (
        {"mode": "cold", "shapes": "1x256x4096,8x256x4096,128x256x4096", "shared-layout": ""},
        {
            "mode": "cold",
            "shapes": "1x256x7168,8x256x7168",
            "field": "weight_dtype=bfloat16",
            "shared-layout": "",
        },
    ),
    # Logits, and ids, come from the kernel before.
    "moe_topk": tuple(
        {"mode": "hot", "shapes": "1x256x8,128x256x8,1024x256x8", "field": fields}
        for fields in (
            ("scoring_func=sigmoid",),
            ("scoring_func=softmax",),
            ("e_score_correction_bias=true",),
            ("e_score_correction_bias=true", "num_expert_group=8", "topk_group=4"),
        )
    ),
    "moe_align_block_size": ({"mode": "hot", "shapes": "1x256x8,128x256x8,1024x256x8"},),
    "attn_gate": ({"mode": "cold", "shapes": "1x32768x32x8x128,1x131072x32x8x128"},),
}


def words(options: Routine) -> Iterator[str]:
    """Yield a routine's options as words of a command line."""
    for name, values in options.items():
        for value in (values,) if isinstance(values, str) else values:
            yield f"--{name}={value}" if value else f"--{name}"


def run_routine(operator: str, options: Routine, more: list[str]) -> dict[str, Any] | None:
    """Run one routine and return what it wrote; None where it could not run."""
    print(f"{operator}: {' '.join([*words(options), *more[:2]])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        status = cli.main(["bench", operator, *words(options), *more, "--json", str(out)])
        if status == cli.INTERRUPTED:
            sys.exit(status)
        found: dict[str, Any] | None = json.loads(out.read_text()) if out.exists() else None
    return found


def run_operator(operator: str, threads: list[str], more: list[str]) -> bool:
    """Run an operator's routines at each number of threads; say whether all could run."""
    runs: list[dict[str, Any]] = []
    path = results_file(RESULTS, operator, device_name())
    complete = True
    for count in threads:
        for routine in ROUTINES[operator]:
            found = run_routine(operator, routine, ["--threads", count, *more])
            if found is None:
                complete = False
                continue
            runs.append(found)
            # After each: what was measured is kept, whatever happens later.
            write_runs(path, runs)
    if runs:
        print(f"{path} written")
    return complete


def main() -> None:
    """Run the routines of the operators that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {list(ROUTINES)}")
    parser.add_argument("--minutes", default="5", help="for tuning, for each routine")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--db", default="tuned.sqlite")
    options = parser.parse_args()
    operators = options.operators or ["ternary_gemm"]
    if unknown := sorted(set(operators) - set(ROUTINES)):
        parser.error(f"no routines for {unknown[0]}; allowed: {', '.join(ROUTINES)}")
    more = ["--minutes", options.minutes, "--db", options.db]
    complete = [run_operator(name, options.threads.split(","), more) for name in operators]
    sys.exit(0 if all(complete) else 1)


if __name__ == "__main__":
    main()
