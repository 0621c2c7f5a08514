"""Record spaces of our own operators: every point of a part of each space, measured on this CPU.

    python -m benchmarks.record_spaces build --minutes 1         # bundles in .spaces/, until done
    python -m benchmarks.record_spaces measure --minutes 3       # until none is left
    python -m benchmarks.record_spaces write           # tables for benchmarks/spaces/

Building takes longer than measuring and may share the machine, measuring may not. A run that was
stopped goes on with the same command. `.spaces/` can be deleted once the tables are written.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.compact_spaces import SPACES

from wattune import ops
from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bundle.create import create
from wattune.compiler.bundle.manifest import NAME
from wattune.compiler.bundle.run import main as run_bundle
from wattune.compiler.record_formats import record_from_line
from wattune.compiler.replay.records import from_records
from wattune.compiler.replay.table import write_table
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.space import Knob, Value
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

WORK = Path(".spaces")
THREADS = 2
# Candidates of one bundle: a part is built as a whole, or again.
PART = 60
# What takes so many times the median is measured again, up to so often: another process may have
# held a core that a thread waited for. The fastest measurement counts.
SLOW, AGAIN = 3.0, 3


@dataclass(frozen=True)
class Recorded:
    """A part of a problem's space: for each template, the values that knobs may have.

    Knobs that are not named may have all their values.
    """

    problem: Problem
    templates: Mapping[str, Mapping[str, tuple[Value, ...]]]

    def candidates(self, target: Target) -> list[Candidate]:
        """Return every point, in an order in which drift of the machine looks like noise."""
        found = []
        for template in templates_for(self.problem, target):
            if (limits := self.templates.get(template.name)) is None:
                continue
            space = template.space(self.problem, target)
            knobs = tuple(_within(knob, limits.get(knob.name)) for knob in space.knobs)
            found += [
                Candidate(self.problem, target, Schedule.make(template.name, values))
                for values in replace(space, knobs=knobs).enumerate()
            ]
        return [found[at] for at in np.random.default_rng(0).permutation(len(found))]


def _within(knob: Knob, values: tuple[Value, ...] | None) -> Knob:
    if values is None:
        return knob
    default = knob.default if knob.default in values else values[0]
    return replace(knob, values=values, default=default)


_ATTENTION: dict[str, tuple[Value, ...]] = {
    "stretch": (16,),
    "split_tokens": (256,),
    "wake": (0,),
    "level": (2,),
    "scores": ("dot",),
    "prefetch": (0, 32),
}

RECORDED = {
    "ternary_gemm_1x2560x6912": Recorded(
        ops.TernaryGemm(1, 2560, 6912),
        {
            "vnni_i2": {"prefetch": (4096,), "grain": (1,)},
            "lookup_tl2": {"prefetch": (8192,), "grain": (1,)},
        },
    ),
    "ternary_gemm_32x2560x2560": Recorded(
        ops.TernaryGemm(32, 2560, 2560),
        {
            "vnni_i2": {
                "prefetch": (8192,),
                "grain": (1,),
                "accumulators": (1,),
                "k_unroll": (1, 2),
            },
        },
    ),
    "decode_attention_1x8192x32x8x128": Recorded(
        ops.DecodeAttention(1, 8192, 32, 8, 128),
        {"decode_attention": {**_ATTENTION, "splits": (1,)}},
    ),
    "quantized_decode_attention_1x8192x32x8x128": Recorded(
        ops.QuantizedDecodeAttention(1, 8192, 32, 8, 128),
        {
            "quantized_attention_vnni": {
                "splits": (1,),
                "split_tokens": (256,),
                "ahead": (0, 1),
            },
        },
    ),
    "block_sparse_decode_attention_1x32768x32x8x128": Recorded(
        ops.BlockSparseDecodeAttention(1, 32768, 32, 8, 128, max_blocks=52),
        {"block_sparse_decode_attention": {**_ATTENTION, "splits": (2,)}},
    ),
    "kv_cache_quantize_1x4096x8x128": Recorded(
        ops.KVCacheQuantize(1, 4096, 8, 128),
        {"kv_quantize_avx512": {"prefetch": (0, 16), "grain": (1, 4, 16)}},
    ),
}


def parts(name: str, target: Target) -> Iterator[tuple[Path, list[Candidate]]]:
    """Yield the bundles of a space and what belongs in each."""
    candidates = RECORDED[name].candidates(target)
    for at, start in enumerate(range(0, len(candidates), PART)):
        yield WORK / f"{name}-{at}", candidates[start : start + PART]


def build(name: str, end: float) -> None:
    """Build the bundles of a space that are not there yet, until the time is up."""
    target = Target.native(THREADS)
    for folder, candidates in parts(name, target):
        if not (folder / NAME).exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            create([RECORDED[name].problem], target, folder, 0, "cold", extra=candidates)
            print(f"{folder}: {len(candidates)} candidates", flush=True)


def measure(name: str, end: float) -> None:
    """Measure what is built and left of a space, until the time is up, and the slow again."""
    _measure(name, end)
    while _set_aside(WORK / f"{name}.jsonl", WORK / f"{name}-slow.jsonl"):
        _measure(name, end)


def _measure(name: str, end: float) -> None:
    for folder, _ in parts(name, Target.native(THREADS)):
        if (folder / NAME).exists() and (left := end - time.monotonic()) > 0:
            out = ["--out", str(WORK / f"{name}.jsonl"), "--confirm", "0"]
            run_bundle(folder, [*out, "--minutes", str(left / 60)])


def _set_aside(path: Path, slow: Path) -> int:
    """Move records of much more than the median; return how many.

    What is not in the file any more will be measured again; after some times it stays.
    """
    records = _records(path)
    times = [record.latency for record in records if record.valid]
    limit = SLOW * float(np.median(times)) if times else 0.0
    before = Counter(record.candidate for record in _records(slow))
    kept: list[str] = []
    moved: list[str] = []
    for record, line in zip(records, path.read_text().splitlines() if times else (), strict=True):
        again = record.valid and record.latency > limit and before[record.candidate] < AGAIN
        (moved if again else kept).append(line + "\n")
    if moved:
        with slow.open("a") as file:
            file.writelines(moved)
        path.write_text("".join(kept))
    return len(moved)


def _records(path: Path) -> list[Record]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [record_from_line(line) for line in lines]


def write(name: str) -> str:
    """Write a space's table; returns what is in it, or that something is left to measure."""
    target = Target.native(THREADS)
    wanted = set(RECORDED[name].candidates(target))
    path = WORK / f"{name}.jsonl"
    found = [*_records(path), *_records(WORK / f"{name}-slow.jsonl")]
    mine = [record for record in found if record.candidate in wanted]
    if left := len(wanted - {record.candidate for record in _records(path)}):
        return f"{name}: {left} of {len(wanted)} are left to measure"
    space = from_records(mine)
    machine = describe_machine(target)
    about = {
        "source": "benchmarks/record_spaces.py",
        "source_hash": mine[0].provenance.source_hash,
        "fingerprint": mine[0].provenance.fingerprint,
        "machine": {
            **machine,
            "date": time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime)),
        },
    }
    write_table(replace(space, about=about), SPACES / f"{name}.json.gz")
    failed = sum(row.failure is not None for row in space.rows.values())
    return f"{name}: {len(space.rows)} points, {failed} failures"


def main() -> None:
    """Build, measure or write all spaces, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["build", "measure", "write"])
    parser.add_argument("--only", action="append", choices=list(RECORDED), help="repeatable")
    parser.add_argument("--minutes", type=float, default=3.0, help="before it stops")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    for name in given.only or RECORDED:
        if given.step == "build":
            build(name, end)
        elif given.step == "measure":
            measure(name, end)
        else:
            print(write(name))


if __name__ == "__main__":
    main()
