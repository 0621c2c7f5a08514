"""Supervision of a measuring process: every built candidate becomes a record, whatever it does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from wattune.compiler.measure.builder import BuildPool, BuildResult
from wattune.compiler.measure.memory import packed_bytes, state_bytes
from wattune.compiler.measure.process import (
    Message,
    WorkerDied,
    WorkerHung,
    WorkerNotReady,
    WorkerProcess,
    wait,
)
from wattune.compiler.measure.timing import BUDGET_SECONDS
from wattune.errors import MeasureError
from wattune.schedules.candidate import (
    Conditions,
    FailureKind,
    Measurement,
    Provenance,
    Record,
)

# Bytes of caches that are drawn, twice, with their references: a quarter of what is usual here.
DRAWN_PER_SECOND = 6 << 20
# Warming and windows of one candidate, and those of the reference before it.
ENERGY_SECONDS = 90.0
# Before a process that did not start is started again: a GPU may need a moment after a fault.
START_PAUSES = (1.0, 5.0)


@dataclass(frozen=True)
class Setting:
    """What all records of a measuring process have in common.

    ``run_timeout``: seconds a candidate may take beside drawing its inputs; ``most_drawn``: bytes
    of states that are drawn at most.
    """

    mode: str
    threads: int
    fingerprint: str
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    run_timeout: float = 30.0
    most_drawn: int = 1 << 62


class Supervisor:
    """Has one process measure built candidates; replaces it where it crashes or hangs."""

    def __init__(
        self, worker: WorkerProcess, setting: Setting, pool: BuildPool | None = None
    ) -> None:
        """Take over the process; builds of ``pool`` go on while it measures."""
        self._worker = worker
        self._setting = setting
        self._pool = pool
        self._best: dict[str, float] = {}

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def limits(self, image: str = "") -> dict[str, float]:
        """Measure what the device can do at most: ``read_gbps`` and more.

        ``image`` is the file with a GPU's kernel for it.
        """
        try:
            answer = self._ask({"limits": image}, self._setting.run_timeout)
        except WorkerNotReady as error:
            raise self._lost(error) from error
        except (WorkerDied, WorkerHung) as error:
            raise MeasureError("crash", f"the device's limits: {error}") from error
        if "error" in answer:
            raise MeasureError("crash", f"the device's limits: {answer['error']}")
        found: dict[str, float] = answer["limits"]
        return found

    def measure(self, result: BuildResult, verify: bool = True, energy: bool = False) -> Record:
        """Return the record of a built candidate, or of one that was not built.

        ``verify``: compare with the reference first. ``energy``: measure it too, where that takes
        long: on GPUs. CPUs do it always.
        """
        if result.failure is not None:
            return self._failed(result, result.failure, result.message)
        record = self._record(result, self._measured(result, verify, energy))
        if verify and record.measurement is not None:
            key = result.candidate.problem.key
            self._best[key] = min(record.latency, self._best.get(key, record.latency))
        return record

    def _measured(self, result: BuildResult, verify: bool, energy: bool) -> Message:
        """Have one library measured; a worker that crashes or hangs is an answer too."""
        request, timeout = self._request(result, verify, energy)
        while True:
            first = self._worker.answered == 0
            try:
                answer = self._ask(request, timeout)
            except WorkerNotReady as error:
                raise self._lost(error) from error
            except WorkerHung as error:
                return {"failure": "timeout", "message": f"run: {error}"}
            except WorkerDied as error:
                if first:
                    return {"failure": "crash", "message": f"the measuring process was {error}"}
                # An earlier candidate may have damaged the process: again in a fresh one.
                continue
            if "error" in answer:
                return {"failure": "crash", "message": answer["error"]}
            return answer

    def _request(self, result: BuildResult, verify: bool, energy: bool) -> tuple[Message, float]:
        """Return what to ask for a candidate, and the seconds that it may take."""
        problem, setting = result.candidate.problem, self._setting
        request: Message = {
            "problem": problem.to_json(),
            "library": str(result.path),
            "pack": result.pack,
            "sizes": result.sizes,
            "verify": verify,
            "best": self._best.get(problem.key) if verify else None,
            "budget": BUDGET_SECONDS[setting.mode],
            "energy": energy,
        }
        # Inputs and references of long contexts, of many experts' weights, are drawn first.
        held = min(state_bytes(problem), setting.most_drawn) + packed_bytes(problem, result.sizes)
        drawn = held / DRAWN_PER_SECOND
        return request, setting.run_timeout + drawn + (ENERGY_SECONDS if energy else 0)

    def _ask(self, request: Message, timeout: float) -> Message:
        """Return the answer; a process that does not start gets time to, and other chances."""
        for pause in (*START_PAUSES, None):
            try:
                return self._once(request, timeout)
            except WorkerNotReady:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, request: Message, timeout: float) -> Message:
        self._worker.send(request, timeout)
        building = self._pool.processes if self._pool else ()
        try:
            while (answer := self._worker.poll()) is None:
                wait([self._worker, *building])
                if self._pool:
                    self._pool.pump()
        except BaseException:
            # Interrupted: a late answer must not be taken for that of the next request.
            self._worker.kill()
            raise
        return answer

    @staticmethod
    def _lost(error: WorkerNotReady) -> MeasureError:
        return MeasureError("crash", f"nothing can be measured: the measuring process {error}")

    def _record(self, result: BuildResult, answer: Message) -> Record:
        if answer.get("failure"):
            return self._failed(result, answer["failure"], answer["message"])
        return Record(
            result.candidate,
            Conditions(self._setting.mode, self._setting.threads, **answer["conditions"]),
            self._provenance(result),
            Measurement(tuple(answer["seconds"]), answer["joules"], answer["energy_source"]),
            message=answer.get("message", ""),
            facts={**result.facts, **answer["facts"]},
        )

    def _failed(self, result: BuildResult, failure: FailureKind, message: str) -> Record:
        return Record(
            result.candidate,
            Conditions(self._setting.mode, self._setting.threads),
            self._provenance(result),
            failure=failure,
            message=message,
            facts=dict(result.facts),
        )

    def _provenance(self, result: BuildResult) -> Provenance:
        setting = self._setting
        return Provenance(
            result.source_hash, setting.fingerprint, dict(setting.versions), time.time()
        )
