"""What a call of routing costs from C, with its checks: ``python -m benchmarks.c_calls``.

Exports `moe_topk` of MiMo-V2-Flash for one thread, builds `examples/c/routing.cc` with it as its
README says and runs it. Every call routes other tokens: a predictor that has learnt a few batches
would make the kernel look faster than it is. Writes a dated file.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import tvm_ffi

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.library.choose import choose
from wattune.compiler.library.package import build
from wattune.ops import MoeTopk
from wattune.schedules.host import device_name
from wattune.schedules.target import Target

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
SOURCE = ROOT / "examples/c/routing.cc"
EXPERTS, TOP_K = 256, 8
TOKENS = (1, 8, 128, 1024)
OUTPUT = re.compile(r"(\d+) ns a call, least (\d+), (\d+) of (\d+) tokens wrong")


def program(folder: Path, target: Target) -> Path:
    """Export the library and build the program."""
    problems = [MoeTopk(tokens, EXPERTS, TOP_K, e_score_correction_bias=True) for tokens in TOKENS]
    library = build(choose(problems, target, None, "latency", None), target)
    path, ffi = library.export(folder / "kernels.so"), Path(tvm_ffi.libinfo.find_libtvm_ffi())
    paths = [f"-Wl,-rpath,{folder}", f"-Wl,-rpath,{ffi.parent}"]
    out = folder / "routing"
    files: list[str | Path] = [out, SOURCE, path, ffi]
    command = ["g++", "-std=c++17", "-O2", f"-I{folder}", "-o", *files, *paths]
    subprocess.run(command, check=True)
    return out


def row(binary: Path, tokens: int) -> dict[str, Any]:
    """Run the program for a number of tokens."""
    words = [str(binary), str(EXPERTS), str(TOP_K), str(tokens)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    print(done.stdout, end="")
    found = OUTPUT.search(done.stdout)
    assert found is not None
    median, least, wrong, checked = map(int, found.groups())
    problem = MoeTopk(tokens, EXPERTS, TOP_K, e_score_correction_bias=True)
    return {
        "problem": problem.to_json(),
        "threads": 1,
        "seconds": {"median": median / 1e9, "least": least / 1e9},
        "tokens_wrong": wrong,
        "tokens_checked": checked,
    }


def main() -> None:
    """Measure all sizes and write them."""
    target = Target.native(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        binary = program(Path(folder), target)
        rows = [row(binary, tokens) for tokens in TOKENS]
    path = results_file(RESULTS, "c-calls", device_name())
    write_rows(path, {"machine": describe_machine(target)}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
