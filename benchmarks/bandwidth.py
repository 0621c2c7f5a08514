"""How near kernels come to the read bandwidth: ``python benchmarks/bandwidth.py [OPERATOR ...]``.

The kernel alone, called from C as the tuner measures it, by the default schedule; the machine's
bandwidth is measured at the same footprint, threads and pages just before and just after, and the
better of the two counts; for attention on dot products of bfloat16 or of 16-bit integers, or on
fp32 multiply-adds, its share of that unit's speed as well. Bytes are those of the packed weights,
or those that must move. One JSON row a problem, mode and number of threads, each kept in a dated
file in ``benchmarks/results/`` as soon as it is measured, beside rows of the same day for other
problems and threads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.bench.run import rotates
from wattune.compiler.bench.units import SHARES, unit_of
from wattune.compiler.measure.limits import read_bandwidth_at, unit_gops
from wattune.compiler.measure.pool import cold_footprint
from wattune.compiler.measure.runner import LocalRunner
from wattune.ops import (
    AttnGate,
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    Problem,
    QuantizedDecodeAttention,
    SelectBlocks,
    TernaryGemm,
    TokenSparseDecodeAttention,
    operator,
)
from wattune.schedules.candidate import Candidate
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

RESULTS = Path(__file__).parent / "results"
HEADS = (32, 8, 128)
SHAPES = ((4096, 4096), (14336, 4096))
LONG = (32768, 131072)

# Operator -> problems by mode.
PROBLEMS: dict[str, dict[str, tuple[Problem, ...]]] = {
    "ternary_gemm": {
        mode: tuple(TernaryGemm(1, *shape, dtype="bfloat16", format=name) for shape in SHAPES)
        for mode, name in (("hot", "i2"), ("cold", "t5"))
    },
    "decode_attention": {
        "hot": (DecodeAttention(1, 4096, *HEADS),),
        "cold": (
            DecodeAttention(1, 32768, *HEADS),
            DecodeAttention(1, 32768, *HEADS, layout="NHD"),
            *(DecodeAttention(1, context, *HEADS, window=128) for context in (4096, 131072)),
        ),
    },
    "block_sparse_decode_attention": {
        "cold": tuple(
            BlockSparseDecodeAttention(1, context, *HEADS, max_blocks=context // 640 + 1)
            for context in LONG
        ),
    },
    "token_sparse_decode_attention": {"cold": (TokenSparseDecodeAttention(1, 32768, *HEADS),)},
    "quantized_decode_attention": {
        "cold": tuple(
            QuantizedDecodeAttention(1, 32768, *HEADS, format=name)
            for name in ("int8", "int4", "int2")
        ),
    },
    "select_blocks": {
        "hot": tuple(
            SelectBlocks(1, context, 8, block_size=size, method="fraction")
            for context in LONG
            for size in (16, 64)
        ),
    },
    "block_score": {
        "cold": tuple(
            BlockScore(1, context, *HEADS, block_size=size) for context in LONG for size in (16, 64)
        ),
    },
    "attn_gate": {"cold": tuple(AttnGate(1, context, *HEADS) for context in LONG)},
}


def moved_bytes(candidate: Candidate) -> int:
    """Return the bytes of the packed weights, or else those that must move."""
    values = candidate.schedule.values
    sizes = template_of(candidate).sizes(candidate.problem, candidate.target, values)
    least = operator(candidate.problem.operator).work(candidate.problem).bytes
    return sizes.get("weight_bytes", least)


def row(target: Target, mode: str, problem: Problem) -> dict[str, object]:
    """Measure one kernel between two measurements of the limit."""
    candidate = default_candidate(problem, target)
    moved = moved_bytes(candidate)
    cold = mode == "cold" and rotates(problem)
    footprint = cold_footprint(target.l3, target.memory) if cold else moved
    with LocalRunner(target, mode) as runner:
        before = read_bandwidth_at(footprint, target.threads)
        (record,) = runner.interleaved([candidate])
        limit = max(before, read_bandwidth_at(footprint, target.threads))
    gbps = moved / record.latency / 1e9
    found = {
        "problem": str(problem),
        "mode": mode,
        "threads": target.threads,
        "microseconds": round(record.latency * 1e6, 1),
        "gbps": round(gbps, 1),
        "limit_gbps": round(limit, 1),
        "of_limit": round(gbps / limit, 3),
    }
    if unit := unit_of(candidate):
        # The unit may bind before the caches do.
        rate = operator(problem.operator).work(problem).operations / record.latency
        # The best of three: threads that wait for a busy core make a sample worthless.
        peak = max(unit_gops(unit, target.threads) for _ in range(3))
        found[SHARES[unit]] = round(rate / 1e9 / peak, 3)
    return found


def main() -> None:
    """Measure, print and write row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {list(PROBLEMS)}")
    parser.add_argument("--threads", help="numbers of threads; 1 and all cores unless told")
    options = parser.parse_args()
    operators = options.operators or ["ternary_gemm"]
    if unknown := sorted(set(operators) - set(PROBLEMS)):
        parser.error(f"no problems of {unknown[0]}; allowed: {', '.join(PROBLEMS)}")
    counts = options.threads.split(",") if options.threads else {1, Target.native().cores}
    machine = describe_machine(Target.native())
    # The file of ternary_gemm alone has the name it always had.
    name = "-".join(["bandwidth", *options.operators])
    path = results_file(RESULTS, name, machine["device"])
    for threads in sorted(map(int, counts)):
        for name in operators:
            for mode, problems in PROBLEMS[name].items():
                for problem in problems:
                    found = row(Target.native(threads), mode, problem)
                    print(json.dumps(found), flush=True)
                    write_rows(path, {"machine": machine}, [found])
    print(f"{path} written")


if __name__ == "__main__":
    main()
