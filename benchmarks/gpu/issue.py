"""What the main loops of attention kernels ask of an SM: ``python -m benchmarks.gpu.issue``.

For each schedule: clocks of each unit for one pass of a block's loop, over the clocks in which the
device's memory brings the bytes of that pass to each SM. A unit above 1 is slower than memory,
however many warps there are. Instructions are read from machine code, rates are public
(`wattune.cost_models.gpu_rates`); nothing is run. One line a schedule, and all to one dated file in
``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wattune.compiler.cli.output import print_table
from wattune.compiler.cuda import sass
from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.cost_models.gpu_rates import gpu_rates
from wattune.ops import DecodeAttention
from wattune.schedules.cuda.attention.knobs import plan_of
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

RESULTS = Path(__file__).parents[1] / "results"
ARCHS = ("sm_80", "sm_90a")
ROWS = (16, 32768)
Schedules = tuple[dict[str, Value], ...]

# Rows by the copy engine, asked for by all warps or by one of its own; of Hopper alone.
_BULK: Schedules = ({"copies": "bulk"}, {"copies": "bulk", "roles": "producer"})
# Products of single warps, and blocks of two teams for 64 rows, where warpgroups are the default.
_WARPS: dict[str, Value] = {"long_side": "rows", "shape": "pad"}
_NARROW: dict[str, Value] = {"teams": 2, "row_warps": 4, "stages": 4}
# Groups of 8 and 16 with one query token; MiMo-V2-Flash's global layers with 4 and 8: 64 and 128
# rows.
CASES: tuple[tuple[DecodeAttention, Schedules], ...] = (
    (DecodeAttention(*ROWS, 64, 8, 128), ({}, {"polynomial": 2}, {"persistent": True}, *_BULK)),
    (DecodeAttention(*ROWS, 64, 4, 128), ({"long_side": "keys"}, {})),
    (DecodeAttention(*ROWS, 64, 4, 192, value_dim=128, query_tokens=4), (_WARPS, {})),
    (
        DecodeAttention(*ROWS, 64, 4, 192, value_dim=128, query_tokens=8),
        (_WARPS | _NARROW, _WARPS, _NARROW, {}),
    ),
)
# Bytes of shared memory that an instruction of a warp moves: 16 a lane.
SHARED_BYTES = 512
# What a column of wgmma reads there for each of the four warps: 16 values by one of them.
GROUP_BYTES = 2 * 16 // 4
# Products of 16 x 8 x 16 in a clock by wgmma, of which mma.sync reaches 0.6.
GROUP_MATRIX = 1.0
_GROUP = re.compile(r"HGMMA\.64x(\d+)x16")
# Warps that an SM lets go on in a clock.
ISSUED = 4


def unit_clocks(counts: Mapping[str, int], arch: str) -> dict[str, float]:
    """Return the clocks of an SM that instructions of one warp take, by unit."""
    rates = gpu_rates(arch)
    assert rates is not None
    found = sass.mix(counts)
    shared = found.get("LDSM", 0) + found.get("LDGSTS", 0)
    columns = sum(int(n) * counts[c] for c in counts for n in _GROUP.findall(c))
    return {
        "issue": found[sass.TOTAL] / ISSUED,
        "matrix": found.get("HMMA", 0) / rates.matrix + columns / 8 / GROUP_MATRIX,
        "special": found.get("MUFU.EX2", 0) / rates.special,
        "shuffle": found.get("SHFL", 0) / rates.shuffle,
        "shared": (shared * SHARED_BYTES + columns * GROUP_BYTES) / rates.l1,
    }


def row_of(problem: DecodeAttention, arch: str, knobs: dict[str, Value]) -> dict[str, Any]:
    """Return the shares of one schedule: the default with some knobs changed."""
    target = Target.parse(f"cuda:{arch}")
    template = templates_for(problem, target)[0]
    values = {**template.space(problem, target).default(), **knobs}
    template.space(problem, target).check(values)
    text = device_source(template.lower(problem, target, values), target).text
    image = compile_image(text, [arch])
    plan, rates = plan_of(problem, target, values), gpu_rates(arch)
    loop = sass.main_loops(image.data, "HGMMA" if plan.grouped else "HMMA")["attend"]
    assert rates is not None
    moved = 2 * plan.block_keys * (problem.head_dim + problem.value_dim)
    # Each of the blocks that share an item's keys asks for them; memory is read once.
    brought = moved / (rates.memory / target.cores / rates.clock) / plan.row_tiles
    # A producer has a loop of its own, which is short of products.
    clocks = {n: c * plan.teams * plan.row_warps for n, c in unit_clocks(loop, arch).items()}
    clocks["l2"] = moved / rates.l2
    if plan.copies == "bulk":
        clocks["shared"] += moved / rates.l1
    shares = {name: round(count / brought, 3) for name, count in clocks.items()}
    return {
        "problem": str(problem),
        "arch": arch,
        "knobs": knobs,
        "rows": plan.item_rows,
        "registers": image.usage["attend", arch].registers,
        "loop": sass.mix(loop),
        "shares": shares,
    }


def rows(archs: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield one row a schedule and architecture."""
    for problem, schedules in CASES:
        for arch in archs:
            space = templates_for(problem, target := Target.parse(f"cuda:{arch}"))[0].space(
                problem, target
            )
            for knobs in schedules:
                if space.contains({**space.default(), **knobs}):
                    yield row_of(problem, arch, knobs)


def main() -> None:
    """Print a table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-file", action="store_true", help="write no file")
    options = parser.parse_args()
    prepare_tvm()
    found = list(rows(ARCHS))
    units = list(found[0]["shares"])
    titles = ("problem", "arch", "knobs", ">registers", *(f">{unit}" for unit in units))
    print_table(
        titles,
        [
            [r["problem"], r["arch"], json.dumps(r["knobs"]), r["registers"]]
            + [f"{r['shares'][unit]:.2f}" for unit in units]
            for r in found
        ],
    )
    if not options.no_file:
        path = RESULTS / f"{time.strftime('%Y-%m-%d')}-gpu-issue.json"
        path.write_text(
            json.dumps({"date": time.strftime("%Y-%m-%d %H:%M"), "rows": found}, indent=1) + "\n"
        )
        print(f"{path} written")


if __name__ == "__main__":
    main()
