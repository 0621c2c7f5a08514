"""A build process: lowers, compiles and links candidates, one at a time."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

from wattune.compiler.build import (
    build_candidate,
    build_pack,
    decided_sizes,
)
from wattune.compiler.measure.process import Handler, Message, serve
from wattune.compiler.tvm_setup import keep_torch_out, prepare_tvm
from wattune.errors import WattuneError
from wattune.schedules.candidate import Candidate
from wattune.schedules.template import register_module, template_of

# Below the measuring process and the caller, where all want the same core.
NICENESS = 5


def start() -> None:
    """Run the worker until its parent ends."""
    serve(_prepare)


def _prepare(setup: Message) -> Handler:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup["cpus"])
    os.nice(NICENESS)
    keep_torch_out()
    prepare_tvm()
    # libtvm_ffi prints a trace of a crash, from inside the crash: it may hang there.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    for module in setup["template_modules"]:
        register_module(setup["kind"], module)
    folder = Path(setup["folder"])

    def answer(request: Message) -> Message:
        try:
            candidate, path = Candidate.from_json(request["candidate"]), Path(request["path"])
            facts = build_candidate(candidate, path)
            sizes = decided_sizes(candidate)
            pack = _pack(candidate, folder)
        except WattuneError as error:
            return {"failure": "build_error", "message": f"{type(error).__name__}: {error}"}
        return {"path": str(path), "sizes": sizes, "pack": pack, "facts": facts}

    return answer


def _pack(candidate: Candidate, folder: Path) -> str | None:
    """Build the pack programs of the candidate's layout unless an earlier candidate had it.

    Named by layout, not by template: templates that share a layout are held to the same bytes.
    """
    template, values = template_of(candidate), candidate.schedule.values
    layout = template.layout(candidate.problem, values)
    text = f"{candidate.problem.static_key}|{layout}"
    path = folder / f"pack-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    none = path.with_suffix(".none")
    if not path.exists() and not none.exists():
        beside = path.with_name(f".{os.getpid()}-{path.name}")
        build_pack(candidate.problem, candidate.target, template, values, beside)
        if beside.exists():
            os.replace(beside, path)
        else:
            none.touch()
    return str(path) if path.exists() else None
