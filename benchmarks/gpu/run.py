"""The standard measurement on a GPU: python benchmarks/gpu/run.py [--minutes 8] [--out FOLDER].

Runs what `make gpu-bundle` prepared, with numpy, ml_dtypes and the driver; torch is measured
beside ours where it is installed, and compute-sanitizer looks at the small cases where it is on
PATH. Every part is written when it is done; what cannot be done leaves a note.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Shares of the minutes: candidates, energies; the rest is for limits, the sanitizer and torch.
TIMING, ENERGY = 0.5, 0.25
ENERGY_CANDIDATES = 4
BAND = 1.05


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; returns 0 where candidates could be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--bundle", type=Path, default=ROOT / ".gpu-bundle")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu-results")
    parser.add_argument("--only", action="append", default=[], help="cases whose name has this")
    options = parser.parse_args(arguments)
    if not (options.bundle / "cases.json").exists():
        print(f"error: no bundle in {options.bundle}: make gpu-bundle", file=sys.stderr)
        return 2
    sys.path[:0] = [str(options.bundle / "site"), str(ROOT)]
    return Measurement(options.bundle, options.out, options.minutes, options.only).all()


class Measurement:
    """One run; ``results`` grows and is written part by part."""

    def __init__(self, bundle: Path, out: Path, minutes: float, only: list[str]) -> None:
        """Read the cases."""
        self._bundle, self._out, self._seconds = bundle, out, 60 * minutes
        self._end = time.monotonic() + self._seconds
        index = json.loads((bundle / "cases.json").read_text())
        self._cases = [c for c in index["cases"] if not only or any(t in c["name"] for t in only)]
        self.results: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "notes": [f"left out: {note}" for note in index["notes"]],
        }
        out.mkdir(parents=True, exist_ok=True)

    def all(self) -> int:
        """Do the parts in the order of their worth."""
        status = self._bundle_run(TIMING, 0, "timing")
        self._read_records()
        self._write()
        for part in (self._sanitize, self._peers, self._energy):
            try:
                part()
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                self._note(f"{part.__name__.strip('_')}: {type(error).__name__}: {error}")
            self._write()
        print(report(self.results), flush=True)
        return status

    def _bundle_run(self, share: float, energy: int, what: str) -> int:
        """Run the bundle for a share of the time."""
        wanted = [c for c in self._cases if c["energy"] or not energy]
        words = ["--out", str(self._records), "--minutes", f"{share * self._seconds / 60:.3f}"]
        if energy:
            words += ["--energy", str(energy)]
        for case in wanted:
            words += ["--only", self._name(case)]
        log = self._out / f"{what}.log"
        with log.open("w") as file:
            command = [sys.executable, str(self._bundle / "run.py"), *words]
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        if status.returncode:
            tail = log.read_text().splitlines()[-3:]
            self._note(f"{what}: exit status {status.returncode}: {' | '.join(tail)}")
        return status.returncode

    @property
    def _records(self) -> Path:
        return self._out / "records.jsonl"

    @staticmethod
    def _name(case: dict[str, Any]) -> str:
        from wattune.ops import problem_from_json

        return str(problem_from_json(case["problem"]))

    def _read_records(self) -> None:
        """Sum up the records of each case."""
        from benchmarks.gpu.summary import summarise

        machine = self._out / "records.machine.json"
        if machine.exists():
            self.results["machine"] = json.loads(machine.read_text())
        self.results["cases"] = summarise(self._cases, self._bundle, self._records, BAND)

    def _sanitize(self) -> None:
        """Have compute-sanitizer watch the small cases' kernels."""
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            self._note("compute-sanitizer is not on PATH")
            return
        child = [sys.executable, str(HERE / "sanitize.py"), str(self._bundle)]
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", *child]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self._left(90))
            text = done.stdout + done.stderr
            found = {"status": done.returncode, "tail": text.splitlines()[-15:]}
        except subprocess.TimeoutExpired:
            found = {"status": None, "tail": ["no end in time"]}
        self.results["sanitizer"] = found

    def _peers(self) -> None:
        """Measure torch beside the best candidates, and compare their outputs at full size."""
        from benchmarks.gpu.summary import peer_jobs

        jobs = peer_jobs(self._cases, self._bundle, self._records)
        footprint = 512 << 20
        request = json.dumps({"jobs": jobs, "footprint": footprint})
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / "peers.py"), str(self._bundle)],
                input=request,
                capture_output=True,
                text=True,
                timeout=self._left(120),
            )
            lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
            if done.returncode:
                self._note(f"torch: {done.stderr.strip().splitlines()[-1:]}")
        except subprocess.TimeoutExpired as late:
            text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            whole = text[: text.rfind("\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines() if line[:1] == "{"]
            self._note("torch: no end in time")
        self.results["peers"] = lines

    def _energy(self) -> None:
        """Measure the energy of the fastest candidates of a few cases."""
        self._bundle_run(min(ENERGY, self._left(600) / self._seconds), ENERGY_CANDIDATES, "energy")
        self._read_records()

    def _left(self, most: float) -> float:
        return max(5.0, min(most, self._end - time.monotonic()))

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self.results["notes"].append(text)

    def _write(self) -> None:
        path = self._out / f"{self.results['date']}-gpu.json"
        path.write_text(json.dumps(self.results, indent=1) + "\n")


def report(results: dict[str, Any]) -> str:
    """Return the tables: ours beside limits and torch, energies, notes."""
    from benchmarks.gpu.summary import tables

    return tables(results)


if __name__ == "__main__":
    sys.exit(main())
