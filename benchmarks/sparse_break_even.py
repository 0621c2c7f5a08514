"""From which context sparse decoding is cheaper: ``python benchmarks/sparse_break_even.py``.

A step of sparse decoding is three calls: scores of the blocks (`block_score` as ReSA has it, or
`attn_gate` as SeerAttention-R), `select_blocks`, and attention to what was selected. Their sum is
compared with our own dense attention at contexts of 1K to 128K, of a Llama-3.1-8B layer. Every part
is the exported kernel, cold, in a process of its own; rounds go in turn through the parts of a
context. A tenth of the blocks is selected, 16 at the least. Bringing the per-block data up to date
(`block_minmax`, `attn_gate_compress`) is not in the sum.

Prints a table and from where the sum is cheaper, and writes one dated file in
``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from wattune.compiler.bench.ceilings import Ceilings
from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.prepare import Records, export_best, usable_records
from wattune.compiler.bench.results import results_file
from wattune.compiler.bench.run import Entry, Job, Settings, footprint, measure_jobs
from wattune.compiler.cli.bench import tune_missing
from wattune.compiler.cli.output import duration, print_table
from wattune.errors import WattuneError
from wattune.ops import (
    AttnGate,
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    Problem,
    SelectBlocks,
    operator,
)
from wattune.schedules.target import Target

RESULTS = Path(__file__).parent / "results"
CONTEXTS = tuple(1024 << i for i in range(8))
HEADS = (32, 8, 128)
RATIOS = ("dense_over_sum", "least_dense_over_sum")
# Selection -> the part that makes its scores.
SELECTIONS = {"resa": "block_score", "seer": "attn_gate"}


def parts(context: int, block_size: int, fraction: float) -> dict[str, Problem]:
    """Return the problems of one context by the names of their parts."""
    select = SelectBlocks(
        1,
        context,
        HEADS[1],
        block_size=block_size,
        method="fraction",
        fraction=fraction,
        min_blocks=min(16, context // block_size),
    )
    return {
        "dense": DecodeAttention(1, context, *HEADS),
        "sparse": BlockSparseDecodeAttention(
            1, context, *HEADS, max_blocks=select.max_blocks, block_size=block_size
        ),
        "select_blocks": select,
        "block_score": BlockScore(1, context, *HEADS, block_size=block_size),
        "attn_gate": AttnGate(1, context, *HEADS, block_size=block_size),
    }


def row(context: int, problems: dict[str, Problem], entries: dict[str, Entry]) -> dict[str, Any]:
    """Return seconds of the parts, and dense over the sum of each selection's."""
    seconds = {name: median(entry.runs) for name, entry in entries.items()}
    least = {name: min(entry.runs) for name, entry in entries.items()}
    return {
        "context": context,
        "max_blocks": problems["sparse"].sizes["max_blocks"],
        "seconds": seconds,
        "least_seconds": least,
        "bytes": {name: operator(p.operator).work(p).bytes for name, p in problems.items()},
        "dense_over_sum": ratios(seconds),
        # Of a disturbed run these say more.
        "least_dense_over_sum": ratios(least),
    }


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return dense over the sum of the parts, for each selection that has them all."""
    return {
        name: seconds["dense"] / (seconds[score] + seconds["select_blocks"] + seconds["sparse"])
        for name, score in SELECTIONS.items()
        if {"dense", "sparse", "select_blocks", score} <= seconds.keys()
    }


def break_even(rows: list[dict[str, Any]], selection: str) -> int | None:
    """Return the context from which on the sum is cheaper at every context, if there is one."""
    found = None
    for each in reversed(rows):
        if each["dense_over_sum"].get(selection, 0.0) <= 1:
            break
        found = each["context"]
    return found


def export(
    problems: dict[str, Problem],
    target: Target,
    records: Records,
    folder: Path,
    notes: list[str],
) -> dict[Problem, Path]:
    """Export the kernel of each part; one that cannot be built leaves a note."""
    found: dict[Problem, Path] = {}
    for name, problem in problems.items():
        (folder / name).mkdir()
        try:
            found.update(export_best([problem], target, records, folder / name))
        except WattuneError as error:
            notes.append(f"{problem} is absent: {error}")
    return found


def measure(
    threads: int, contexts: list[int], options: argparse.Namespace, notes: list[str]
) -> dict[str, Any]:
    """Measure all contexts at one number of threads."""
    target = Target.native(threads)
    by_context = {c: parts(c, options.block_size, options.fraction) for c in contexts}
    problems = [problem for of in by_context.values() for problem in of.values()]
    tune_missing(problems, target, options.db, "cold", options.minutes)
    records = usable_records(problems, target, options.db, "cold")
    settings = Settings(threads, "cold", options.rounds, footprint=footprint(target, "cold"))
    ceilings = Ceilings(target)
    rows = []
    for context, of in by_context.items():
        ceilings.at(settings.footprint)
        with tempfile.TemporaryDirectory() as folder:
            libraries = export(of, target, records, Path(folder), notes)
            jobs = [Job(name, "wattune", p) for name, p in of.items() if p in libraries]
            entries = measure_jobs(jobs, libraries, settings, notes)
        rows.append(row(context, of, entries))
        print(f"context {context}: {json.dumps(rows[-1]['dense_over_sum'])}", flush=True)
    return {
        "threads": threads,
        "rows": rows,
        "cheaper_from": {name: break_even(rows, name) for name in SELECTIONS},
        "limits": ceilings.to_json(),
    }


def show(result: dict[str, Any]) -> None:
    """Print one table and what it says."""
    names = ("dense", "sparse", "block_score", "attn_gate", "select_blocks")
    cells = [
        (
            str(each["context"]),
            *(duration(each["seconds"][n]) if n in each["seconds"] else "-" for n in names),
            *(f"{each['dense_over_sum'].get(name, 0):.2f}x" for name in SELECTIONS),
        )
        for each in result["rows"]
    ]
    columns = (">context", *(f">{name}" for name in names), *(f">{name}" for name in SELECTIONS))
    print_table(columns, cells, f"dense over selection + sparse, {result['threads']} thread(s)")
    last = result["rows"][-1]
    for name, score in SELECTIONS.items():
        start = result["cheaper_from"][name]
        verdict = f"cheaper from {start}" if start else "not cheaper"
        ratio, least = (last[key].get(name, 0.0) for key in RATIOS)
        print(f"{name} ({score}): {verdict}; at {last['context']} {ratio:.2f}x, least {least:.2f}x")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--fraction", type=float, default=0.1, help="of the blocks")
    parser.add_argument("--minutes", type=float, default=0, help="for tuning, a thread count")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--db", default="tuned.sqlite")
    options = parser.parse_args()
    contexts = [int(context) for context in options.contexts.split(",")]
    notes: list[str] = []
    results = []
    for threads in map(int, options.threads.split(",")):
        results.append(measure(threads, contexts, options, notes))
        show(results[-1])
    for note in notes:
        print(f"note: {note}")
    machine = describe_machine(Target.native())
    path = results_file(RESULTS, "sparse-break-even", machine["device"])
    data = {"machine": machine, "runs": results, "notes": notes}
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{path} written")


if __name__ == "__main__":
    main()
