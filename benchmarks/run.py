"""One command for all benchmarks: python benchmarks/run.py [OPERATOR] [--minutes 5] [--db ...].

Runs the routines of an operator with ``wattune bench`` and writes their rows, with the machine's
description, to one dated file in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from wattune.compiler import cli

RESULTS = Path(__file__).parent / "results"

# Operator -> routines: the options of one `wattune bench` each.
ROUTINES: dict[str, tuple[dict[str, str], ...]] = {
    "ternary_gemm": (
        {"mode": "cold", "shapes": "1x2560x2560,1x2560x6912,1x4096x4096,1x14336x4096"},
        {"mode": "hot", "shapes": "1x2560x2560,1x4096x4096,1x14336x4096,8x4096x4096"},
        {
            "mode": "hot",
            "shapes": "32x4096x4096,32x2560x6912,128x4096x4096,128x2560x6912,128x14336x4096",
            "field": "dtype=int8",
        },
    ),
}


def run_routine(operator: str, options: dict[str, str], more: list[str]) -> dict[str, Any]:
    """Run one routine and return what it wrote."""
    words = [f"--{name}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        status = cli.main(["bench", operator, *words, *more, "--json", str(out)])
        if not out.exists():
            sys.exit(status)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Run an operator's routines at each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operator", nargs="?", default="ternary_gemm", choices=ROUTINES)
    parser.add_argument("--minutes", default="5", help="for tuning, for each routine")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--db", default="tuned.sqlite")
    options = parser.parse_args()
    runs = [
        run_routine(
            options.operator,
            routine,
            ["--threads", threads, "--minutes", options.minutes, "--db", options.db],
        )
        for threads in options.threads.split(",")
        for routine in ROUTINES[options.operator]
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-{options.operator}.json"
    path.write_text(json.dumps(runs, indent=1) + "\n")
    print(f"{path} written")


if __name__ == "__main__":
    main()
