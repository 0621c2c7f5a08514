"""A pool of build processes with time-outs: a bad candidate costs itself and one worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wattune.compiler.measure.process import Message, WorkerDied, WorkerHung, WorkerProcess, wait
from wattune.schedules.candidate import Candidate, FailureKind
from wattune.schedules.template import template_of

# TVM keeps some memory of every program it has compiled.
RECYCLE_AFTER = 300


@dataclass(frozen=True)
class BuildResult:
    """A built library, or why there is none.

    ``sizes`` are those that the schedule decides; ``pack`` is the library of pack programs, None
    where the layout needs none; ``source_hash`` is the template's. All are what the measuring
    process cannot ask a template for.
    """

    candidate: Candidate
    path: Path | None = None
    failure: FailureKind | None = None
    message: str = ""
    facts: dict[str, float] = field(default_factory=dict, hash=False)
    sizes: dict[str, int] = field(default_factory=dict, hash=False)
    pack: str | None = None
    source_hash: str = ""


class BuildPool:
    """Builds candidates in ``workers`` processes, into files of one folder.

    Nothing runs by itself: `pump` hands out jobs and collects results, and whoever waits for
    something else too passes `processes` to `process.wait`.
    """

    def __init__(
        self,
        workers: int,
        folder: Path,
        timeout: float = 60,
        cpus: Sequence[int] = (0,),
        template_modules: Sequence[str] = (),
        kind: str = "cpu",
    ) -> None:
        """Prepare workers; they start with their first job and may use these cores."""
        setup: Message = {
            "cpus": list(cpus),
            "folder": str(folder),
            "temporary": str(folder),
            "kind": kind,
            "template_modules": list(template_modules),
        }
        self.processes = [
            WorkerProcess("wattune.compiler.measure.build_worker", setup) for _ in range(workers)
        ]
        self._timeout = timeout
        self._jobs: dict[WorkerProcess, Candidate] = {}
        self._waiting: deque[Candidate] = deque()
        self._folder = folder
        self._count = 0
        self.finished: deque[BuildResult] = deque()

    @property
    def pending(self) -> int:
        """Count the candidates that are waiting or being built."""
        return len(self._waiting) + len(self._jobs)

    def submit(self, candidate: Candidate) -> None:
        """Queue a candidate and start it if a worker is free."""
        self._waiting.append(candidate)
        self._hand_out()

    def pump(self) -> None:
        """Move what is ready to ``finished`` and give free workers their next job; never waits."""
        for process, candidate in list(self._jobs.items()):
            try:
                answer = process.poll()
            except WorkerHung as error:
                result = BuildResult(candidate, None, "timeout", f"build: {error}")
            except WorkerDied as error:
                message = f"the build process was {error}"
                result = BuildResult(candidate, None, "build_error", message)
            else:
                if answer is None:
                    continue
                result = self._result(process, candidate, answer)
            del self._jobs[process]
            source_hash = template_of(candidate).source_hash()
            self.finished.append(replace(result, source_hash=source_hash))
        self._hand_out()

    def wait(self) -> None:
        """Wait until something is ready, or is too late, and `pump`."""
        wait(self.processes)
        self.pump()

    def cancel(self) -> None:
        """Drop all jobs and results, those under way included."""
        self._waiting.clear()
        self.finished.clear()
        for process in self._jobs:
            process.kill()
        self._jobs.clear()

    def close(self) -> None:
        """End all workers."""
        self.cancel()
        for process in self.processes:
            process.close()

    def _hand_out(self) -> None:
        for process in self.processes:
            if self._waiting and process not in self._jobs:
                candidate = self._waiting.popleft()
                self._jobs[process] = candidate
                self._count += 1
                path = self._folder / f"{self._count}.so"
                request = {"candidate": candidate.to_json(), "path": str(path)}
                process.send(request, self._timeout)

    def _result(self, process: WorkerProcess, candidate: Candidate, answer: Message) -> BuildResult:
        if process.answered >= RECYCLE_AFTER:
            process.kill()
        if "path" not in answer:
            message = answer.get("message") or answer.get("error", "")
            return BuildResult(candidate, None, "build_error", message)
        return BuildResult(
            candidate,
            Path(answer["path"]),
            facts=answer["facts"],
            sizes=answer["sizes"],
            pack=answer["pack"],
        )
