"""Worker processes: started fresh, answering JSON lines, killed when they hang.

Not ``multiprocessing``: its spawned children import the user's main module again, and its pools
cannot kill one worker. A worker here is ``python -c``; its standard input carries requests, its
standard output answers, its standard error is kept for the reason of a crash. It ends with its
parent: the end of its standard input ends it, even in the middle of a kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from wattune.compiler.cc import last_lines

Message: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Message], Message]

STARTUP_SECONDS = 120.0
_STARTER = "import sys; sys.path[:] = {path!r}; from {module} import start; start()"


class WorkerDied(Exception):
    """A worker ended in the middle of a job; the message says how."""


class WorkerNotReady(WorkerDied):
    """A worker ended, or hung, before it could take its first job: no fault of the job."""


class WorkerHung(Exception):
    """A worker did not answer in time and was killed."""


class WorkerProcess:
    """One worker: a module with a ``start`` function that calls `serve`.

    At most one request is under way. A worker that died or was killed starts again with the next
    request; ``answered`` counts what it has answered since it started.
    """

    def __init__(
        self, module: str, setup: Message, environment: Mapping[str, str] | None = None
    ) -> None:
        """Remember what to start: ``setup`` is the first message the worker gets."""
        self._module = module
        self._setup = setup
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the object
        self._errors_before = 0
        self._buffer = b""
        self._timeout: float = 0.0
        self._deadline: float | None = None
        self._ready = False
        self.answered = 0

    @property
    def busy(self) -> bool:
        """Say whether a request is under way."""
        return self._deadline is not None

    @property
    def deadline(self) -> float:
        """Return when the worker counts as hung, on the monotonic clock."""
        return self._deadline if self._deadline is not None else float("inf")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with an answer."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, request: Message, timeout: float) -> None:
        """Start a job; the time-out counts from when the worker has started."""
        if self._process is not None and self._process.poll() is not None:
            self.kill()  # ended while idle: not the fault of this job
        if self._process is None:
            self._start()
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout + (0.0 if self._ready else STARTUP_SECONDS)
        self._errors_before = os.fstat(self._errors.fileno()).st_size
        with contextlib.suppress(BrokenPipeError):  # found dead when the answer is read
            self._write(request)

    def poll(self) -> Message | None:
        """Return the answer if it has arrived.

        Raises `WorkerDied`, `WorkerNotReady` or `WorkerHung`; the worker is gone then.
        """
        while (line := self._line()) is not None:
            message: Message = json.loads(line)
            if not message.pop("ready", False):
                self._deadline = None
                self.answered += 1
                return message
            self._ready = True
            self._deadline = time.monotonic() + self._timeout
        if time.monotonic() > self.deadline:
            ready, seconds = self._ready, self._timeout
            self.kill()
            if not ready:
                raise WorkerNotReady(f"not ready within {STARTUP_SECONDS:g} s")
            raise WorkerHung(f"no answer within {round(seconds, 1):g} s")
        return None

    def ask(self, request: Message, timeout: float) -> Message:
        """Send a request and wait for its answer."""
        self.send(request, timeout)
        while (answer := self.poll()) is None:
            wait([self])
        return answer

    def kill(self) -> None:
        """End the worker and everything it started, at once."""
        process, self._process = self._process, None
        self._deadline, self._ready, self._buffer, self.answered = None, False, b"", 0
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def close(self) -> None:
        """End the worker for good."""
        self.kill()
        self._errors.close()

    def _start(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]
        self._errors.seek(0)
        self._errors.truncate()
        code = _STARTER.format(path=path, module=self._module)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, **self._environment},
            # Its own session: the terminal's Ctrl-C is for the parent, which then ends it.
            start_new_session=True,
        )
        os.set_blocking(self.fileno(), False)
        with contextlib.suppress(BrokenPipeError):
            self._write(self._setup)

    def _write(self, message: Message) -> None:
        assert self._process is not None and self._process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[self._process.stdin.write(data) :]

    def _line(self) -> bytes | None:
        """Return one complete line, or None where there is none yet."""
        while b"\n" not in self._buffer:
            try:
                data = os.read(self.fileno(), 1 << 16)
            except BlockingIOError:
                return None
            if not data:
                raise self._died()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> WorkerDied:
        """Collect a dead worker and say what is known about its end."""
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(self._errors_before)
        reason = last_lines(self._errors.read().decode(errors="replace"))
        kind = WorkerDied if self._ready else WorkerNotReady
        self.kill()
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit status {code}"
        return kind(f"{how}: {reason}" if reason else how)


def wait(workers: Sequence[WorkerProcess]) -> None:
    """Sleep until one of the busy workers has something to say or runs out of time."""
    busy = [worker for worker in workers if worker.busy]
    if not busy:
        return
    # Not select(): it refuses descriptors above 1023, which a large host program may have open.
    poller = select.poll()
    for worker in busy:
        poller.register(worker.fileno(), select.POLLIN)
    remaining = min(worker.deadline for worker in busy) - time.monotonic()
    poller.poll(max(0.0, remaining) * 1000 + 1)


def serve(prepare: Callable[[Message], Handler]) -> None:
    """Run a worker: set up with the first message, then answer requests one by one.

    Whatever a handler raises becomes an answer with ``error``. The folder that the set-up message
    names as ``temporary`` is deleted where the parent ends without doing so.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Native code may print: answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if not (first := sys.stdin.buffer.readline()):
        return
    setup: Message = json.loads(first)
    handler = prepare(setup)
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    temporary = setup.get("temporary")
    threading.Thread(target=_read, args=(requests, temporary), daemon=True).start()
    answers.write(b'{"ready": true}\n')
    while True:
        request = requests.get()
        try:
            answer = handler(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {last_lines(str(error))}"}
        answers.write(json.dumps(answer).encode() + b"\n")


def _read(requests: queue.SimpleQueue[Message], temporary: str | None) -> None:
    """Queue requests; the end of the input is the end of the parent, and so of this process."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)
    os._exit(0)
