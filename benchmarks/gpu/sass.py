"""Machine code of the default GPU schedules: ``python -m benchmarks.gpu.sass [OPERATOR ...]``.

For each standard shape and architecture: registers, spills, shared memory, how many warps an SM
holds at once, and the instructions that say how a kernel works: loads of 16 bytes, tensor cores,
exchanges, exponentials. No GPU is needed; nothing is run. One line a kernel, and all of them to one
dated file in ``benchmarks/results/``. Operators without a template for GPUs are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import cases

from wattune.compiler.cli.output import print_table
from wattune.compiler.cuda.device_code import device_compiler
from wattune.compiler.cuda.program import compile_facts
from wattune.compiler.cuda.rules import kernels_of, refusal
from wattune.compiler.cuda.sass import INSTRUCTIONS, TOTAL, disassembler, tool_version
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.errors import ScheduleError
from wattune.ops import (
    AttnGate,
    AttnGateCompress,
    BlockMinmax,
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    KVCacheAppend,
    KVCacheQuantize,
    MergeStates,
    Problem,
    QuantizedDecodeAttention,
    QuantizedKVCacheAppend,
    SelectBlocks,
    SelectUnion,
)
from wattune.schedules.cuda.occupancy import WARP, multiprocessor
from wattune.schedules.host import toolchain
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

RESULTS = Path(__file__).parents[1] / "results"
ARCHS = ("sm_80", "sm_89", "sm_90a")

ROWS = (16, 32768)
HEADS = (64, 8, 128)

# What the standard measurement times, then the rest of a decoding step at such sizes.
PROBLEMS: tuple[Problem, ...] = (
    *(case.problem for case in cases() if case.standard),
    DecodeAttention(*ROWS, *HEADS, layout="NHD", page_size=64),
    BlockSparseDecodeAttention(*ROWS, *HEADS, max_blocks=52, page_size=64),
    BlockSparseDecodeAttention(*ROWS, *HEADS, max_blocks=205, block_size=16),
    QuantizedDecodeAttention(*ROWS, *HEADS, format="int8"),
    MergeStates(16, 8, 64, 128),
    KVCacheAppend(*ROWS, *HEADS[1:]),
    KVCacheAppend(*ROWS, *HEADS[1:], page_size=64),
    *(QuantizedKVCacheAppend(*ROWS, *HEADS[1:], format=n) for n in ("int8", "int4", "int2")),
    *(KVCacheQuantize(1, 32768, *HEADS[1:], format=name) for name in ("int8", "int4", "int2")),
    BlockMinmax(*ROWS, *HEADS[1:]),
    BlockScore(*ROWS, *HEADS),
    AttnGate(*ROWS, *HEADS),
    AttnGateCompress(*ROWS, *HEADS[1:]),
    SelectBlocks(*ROWS, 8),
    SelectBlocks(16, 131072, 8, method="threshold"),
    SelectUnion(*ROWS, 64),
)


def rows_of(problem: Problem, arch: str) -> Iterator[dict[str, Any]]:
    """Yield one row a kernel of the default schedule; none where no template serves it."""
    target = Target.parse(f"cuda:{arch}")
    try:
        candidate = default_candidate(problem, target)
    except ScheduleError:
        return
    template = template_of(candidate)
    facts = compile_facts(template.lower(problem, target, candidate.schedule.values), target)
    refused = refusal(facts)
    for kernel in kernels_of(facts):
        used, mix = facts_of_kernel(facts, kernel)
        yield {
            "problem": str(problem),
            "operator": problem.operator,
            "arch": arch,
            "template": template.name,
            "knobs": candidate.schedule.values,
            "kernel": kernel,
            **used,
            "occupancy": occupancy(arch, used),
            "mix": mix,
            "refused": refused,
        }


def facts_of_kernel(
    facts: Mapping[str, float], kernel: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Return what a kernel uses, and how many instructions of each kind it has."""
    start = f"{kernel}."
    own = {n.removeprefix(start): int(v) for n, v in facts.items() if n.startswith(start)}
    mix = {n.removeprefix("sass."): v for n, v in own.items() if n.startswith("sass.")}
    return {n: v for n, v in own.items() if not n.startswith("sass.")}, mix


def occupancy(arch: str, used: dict[str, int]) -> float | None:
    """Return the warps that an SM holds at once, of those it could."""
    sm = multiprocessor(arch)
    if sm is None:
        return None
    warps = -(-used["threads"] // WARP) * used["blocks_per_sm"]
    return round(warps * WARP / sm.threads, 3)


# Instructions that say how a kernel works.
SHOWN = (TOTAL, *(name for name in INSTRUCTIONS if name not in ("LDS", "STS", "LOP3", "HFMA2")))
# Title -> how a row tells it.
COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "problem": lambda row: row["problem"],
    "arch": lambda row: row["arch"],
    "kernel": lambda row: row["kernel"],
    ">threads": lambda row: row["threads"],
    ">registers": lambda row: row["registers"],
    ">spills": lambda row: row["spill_stores"] + row["spill_loads"],
    ">stack": lambda row: row["stack"],
    ">shared": lambda row: row["shared"] + row["dynamic_shared"],
    ">blocks/SM": lambda row: row["blocks_per_sm"],
    ">occupancy": lambda row: row["occupancy"],
    "instructions": lambda row: " ".join(f"{n} {row['mix'][n]}" for n in SHOWN if n in row["mix"]),
}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print_table(tuple(COLUMNS), [[tell(row) for tell in COLUMNS.values()] for row in rows])


def main() -> None:
    """Print a table an operator, then write all rows."""
    operators = list(dict.fromkeys(problem.operator for problem in PROBLEMS))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {operators}")
    parser.add_argument("--archs", default=",".join(ARCHS), help="architectures")
    parser.add_argument("--no-file", action="store_true", help="write no file")
    options = parser.parse_args()
    if unknown := sorted(set(options.operators) - set(operators)):
        parser.error(f"no problems of {unknown[0]}; allowed: {', '.join(operators)}")
    prepare_tvm()
    rows: list[dict[str, Any]] = []
    for name in options.operators or operators:
        problems = [problem for problem in PROBLEMS if problem.operator == name]
        archs = options.archs.split(",")
        found = [row for p in problems for arch in archs for row in rows_of(p, arch)]
        rows += found
        if found:
            show(found)
    if not options.no_file:
        write(rows)


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows, with what made and what read the code, to a dated file."""
    compiler, tool = device_compiler(), disassembler()
    made = {
        compiler.name: compiler.version,
        "nvdisasm": None if tool is None else tool_version(tool),
    }
    date = time.strftime("%Y-%m-%d")
    path = RESULTS / f"{date}-sass.json"
    RESULTS.mkdir(exist_ok=True)
    result = {"date": time.strftime("%Y-%m-%d %H:%M"), "versions": {**toolchain(), **made}}
    path.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    print(f"{path} written")


if __name__ == "__main__":
    main()
