"""The measuring process of one implementation, seen from the benchmark."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from wattune.compiler.measure.affinity import openmp_environment
from wattune.errors import MeasureError

# A setup may compile (flex_attention: 15 s) and converts caches of gigabytes.
READY_SECONDS = 300.0
ROUND_SECONDS = 120.0


class BenchProcess:
    """A fresh process that holds one implementation; idle, and asleep, between rounds."""

    def __init__(self, spec: Mapping[str, Any], cpus: list[int]) -> None:
        """Start the process on these processors and send it the setup."""
        self.name = str(spec["implementation"])
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wattune.compiler.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=_environment(cpus),
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        self._send(spec)

    def ready(self) -> dict[str, Any]:
        """Return the answer to the setup: ``moved`` and ``copies``, or ``unavailable``."""
        return self._receive(READY_SECONDS)

    def round(self, seconds: float) -> list[float]:
        """Run one round; return the seconds of each call."""
        self._send({"seconds": seconds})
        runs: list[float] = self._receive(ROUND_SECONDS)["runs"]
        return runs

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.close()

    def _send(self, data: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(data) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Return the answer to what was sent last; every request has one line."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.process.kill()
            raise MeasureError("timeout", f"{self.name}: no answer in {seconds:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> MeasureError:
        """Say how the process ended, with the last line that it wrote."""
        status = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        return MeasureError("crash", f"{self.name}: its process ended ({status}): {last}")


def _environment(cpus: list[int]) -> dict[str, str]:
    """Return the environment that keeps every library's threads on these processors."""
    threads = str(len(cpus))
    blas = {"MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return {**os.environ, **openmp_environment(cpus), **blas}
