"""Compile problems into a library and export it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wattune.compiler.build import baseline, build_objects, link
from wattune.compiler.cc import cached, compiler, run
from wattune.compiler.cuda.program import ffi_includes
from wattune.compiler.library.choose import check_siblings, choose, verify
from wattune.compiler.library.dispatch import dispatch_source
from wattune.compiler.library.features import required_features
from wattune.compiler.library.header import header_source
from wattune.compiler.library.manifest import Manifest
from wattune.compiler.library.plan import Choice, Plan, make_plan
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.errors import BuildError, LibraryError, WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate
from wattune.schedules.target import Target
from wattune.schedules.template import template_of

_SOURCES = (
    "checks.c",
    "cpu.c",
    "entries.c",
    "match.c",
    "message.c",
    "runtime.c",
    "scratch.c",
    "values.c",
)
_HERE = Path(__file__).parent
# -O3: checks of values are loops that are worth vectors.
_FLAGS = ("-O3", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra")


def compile(
    problems: Sequence[Problem],
    target: Target,
    database: str | Path | None = None,
    objective: str = "latency",
    allow_unverified: bool = False,
    weights: Mapping[Problem, float] | None = None,
    also: Sequence[str] = (),
) -> Library:
    """Compile the best known kernel of each problem into one library.

    Problems that differ only in run-time sizes become buckets of one entry. ``database`` is what
    `tune` wrote; without records a problem gets its default schedule. Every kernel was compared
    with the reference, here or when it was tuned; where ``target`` does not run on this machine
    that cannot be, and a `TargetError` says so unless ``allow_unverified``. ``weights`` say how
    much each problem counts where several share one packed layout. ``also`` names architectures of
    GPUs (``sm_80``) that get machine code of the same schedules, beside the target's own.
    """
    distinct = list(dict.fromkeys(problems))
    if not distinct:
        raise LibraryError("compile needs at least one problem")
    required_features(target)
    choices = choose(distinct, target, database, objective, weights)
    also = [arch for arch in dict.fromkeys(also) if arch != target.arch]
    check_siblings(choices, target, also)
    return build(verify(choices, target, allow_unverified), target, also)


def build(choices: Sequence[Choice], target: Target, also: Sequence[str] = ()) -> Library:
    """Compile chosen candidates into a library, without asking whether they are verified."""
    plan = make_plan(choices, target, also)
    folder = tempfile.TemporaryDirectory(prefix="wattune-library-")
    path = Path(folder.name) / "kernels.so"
    _compile_plan(plan, target, Path(folder.name), path)
    return Library(plan.manifest, path, folder)


class Library:
    """A compiled library that is not exported yet; its files live as long as the object."""

    def __init__(
        self, manifest: Manifest, path: Path, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        """Hold what `build` made."""
        self.manifest = manifest
        self.path = path
        self._folder = folder

    def export(self, path: str | Path) -> Path:
        """Write the library to ``path`` (``.so``), with the C header and the manifest beside it."""
        out = Path(path)
        if out.suffix != ".so":
            raise LibraryError(f"export path is {str(path)!r}; allowed: a name ending in .so")
        try:
            _replace(out, self.path.read_bytes())
            _replace(out.with_suffix(".h"), header_source(self.manifest).encode())
            _replace(out.with_suffix(".json"), self.manifest.to_json().encode())
        except OSError as error:
            raise LibraryError(f"cannot export to {out}: {error.strerror or error}") from error
        return out

    def __repr__(self) -> str:
        """Show the operators and how many kernels each has."""
        parts = (
            f"{op.name} ({sum(len(v.kernels) for v in op.variants)} kernels)"
            for op in self.manifest.operators
        )
        verified = "" if self.manifest.verified else ", not verified"
        return f"<wattune library: {', '.join(parts)}{verified}>"


def _replace(path: Path, content: bytes) -> None:
    """Write beside and move: a process that has the old library open keeps it whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.chmod(0o755 if path.suffix == ".so" else 0o644)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _compile_plan(plan: Plan, target: Target, folder: Path, path: Path) -> None:
    """Compile kernels for the target, all else for its baseline, and link."""
    prepare_tvm()
    kernels = {symbol: _lower(candidate) for symbol, candidate in plan.kernels.items()}
    also = plan.manifest.archs[1:]
    objects = list(build_objects(kernels, target, folder / "kernels.o", also).objects)
    if plan.packs:
        packs = {symbol: _pack(*origin) for symbol, origin in plan.packs.items()}
        objects += build_objects(packs, baseline(target), folder / "packs.o").objects
    source = folder / "dispatch.c"
    source.write_text(dispatch_source(plan.manifest, required_features(target)))
    includes = [f"-I{_HERE}", *ffi_includes()]
    run([compiler(), "-fPIC", "-c", *_FLAGS, *includes, source, "-o", folder / "dispatch.o"])
    link([*objects, folder / "dispatch.o", *_runtime_objects(includes)], path, target.host_threads)


def _lower(candidate: Candidate) -> Any:
    template = template_of(candidate)
    return _guarded(
        template.name,
        lambda: template.lower(candidate.problem, candidate.target, candidate.schedule.values),
    )


def _pack(candidate: Candidate, argument: str) -> Any:
    template = template_of(candidate)
    return _guarded(
        template.name,
        lambda: template.pack(candidate.problem, candidate.schedule.values)[argument],
    )


def _guarded(name: str, lower: Any) -> Any:
    try:
        return lower()
    except WattuneError:
        raise
    except Exception as error:
        raise BuildError(f"{name} did not lower: {type(error).__name__}: {error}") from error


def _runtime_objects(includes: Sequence[str]) -> list[Path]:
    """Return what every library is linked with, compiled at first use."""
    # `cached` digests the source file; the header it includes goes in as a flag.
    digest = hashlib.sha256((_HERE / "runtime.h").read_bytes()).hexdigest()[:8]
    flags = (*_FLAGS, f"-DWT_HEADER_{digest}", *includes)
    return [cached(_HERE / name, flags, ".o") for name in _SOURCES]
