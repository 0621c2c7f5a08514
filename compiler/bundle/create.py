"""Create: build default and sampled candidates and lay them out with what measures them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wattune.compiler.bundle.contents import copy_runner
from wattune.compiler.bundle.manifest import NAME, Manifest
from wattune.compiler.cc import compiler
from wattune.compiler.cuda.device_code import device_compiler
from wattune.compiler.cuda.program import LIMITS_IMAGE, limits_image
from wattune.compiler.measure.affinity import usable_cpus
from wattune.compiler.measure.builder import BuildPool, BuildResult
from wattune.compiler.search.task import Task
from wattune.errors import WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate
from wattune.schedules.host import toolchain
from wattune.schedules.target import Target

CANDIDATES = "candidates"
# What a folder may hold before its manifest, which is written last, is there.
_PARTS = {CANDIDATES, LIMITS_IMAGE, "run.py", "site"}
# What the CUDA release that compiles needs at least, by its own table.
_DRIVER = "580 (CUDA 13.0)"


def create(
    problems: Sequence[Problem],
    target: Target,
    folder: Path,
    samples: int,
    mode: str = "cold",
    seed: int = 0,
    workers: int | None = None,
    extra: Sequence[Candidate] = (),
    built: Callable[[int, int], None] | None = None,
    template_modules: Sequence[str] = (),
    few: Collection[Problem] = (),
) -> Manifest:
    """Build a bundle for all problems in a new or empty folder; returns what it holds.

    For each problem the defaults of all templates and ``samples`` schedules that cover the space
    evenly, of those in ``few`` the defaults alone; ``extra`` candidates are added.
    ``built(done, all)`` hears of every build. A candidate that does not build is in the manifest
    with the reason. `WattuneError` for a folder that holds something else.
    """
    made = _emptied(folder) / CANDIDATES
    made.mkdir(parents=True)
    compiler()  # an error now, not for every candidate
    versions, image = toolchain(), ""
    if target.kind == "cuda":
        image = limits_image(target, folder).name
        versions = {**versions, device_compiler().name: device_compiler().version}
    drawn = [
        candidate
        for problem in dict.fromkeys(problems)
        for candidate in _candidates(problem, target, 0 if problem in few else samples, seed)
    ]
    candidates = list(dict.fromkeys([*drawn, *extra]))
    results = []
    for result in _built(candidates, target, made, workers, template_modules):
        results.append(result)
        if built is not None:
            built(len(results), len(candidates))
    order = {candidate: at for at, candidate in enumerate(candidates)}
    results.sort(key=lambda result: order[result.candidate])
    copy_runner(folder, target)
    found = Manifest(target, mode, seed, {}, versions, tuple(results), image)
    found = replace(found, needs=_needs(found, folder))
    found.write(folder)
    return found


def _emptied(folder: Path) -> Path:
    """Remove an old bundle, or what is left of one whose making was broken off."""
    if folder.exists() and (names := {path.name for path in folder.iterdir()}):
        if NAME not in names and not names <= _PARTS:
            raise WattuneError(f"{folder} holds something else; give a new folder")
        shutil.rmtree(folder)
    return folder


def _candidates(problem: Problem, target: Target, samples: int, seed: int) -> list[Candidate]:
    task = Task(problem, target)
    return [*task.defaults(), *task.spread(samples, np.random.default_rng(seed))]


def _built(
    candidates: Sequence[Candidate],
    target: Target,
    folder: Path,
    workers: int | None,
    template_modules: Sequence[str],
) -> Iterator[BuildResult]:
    cpus = usable_cpus()
    pool = BuildPool(
        workers or len(cpus), folder, cpus=cpus, template_modules=template_modules, kind=target.kind
    )
    try:
        for candidate in candidates:
            pool.submit(candidate)
        while pool.pending or pool.finished:
            while pool.finished:
                yield pool.finished.popleft()
            if pool.pending:
                pool.wait()
    finally:
        pool.close()
    for path in folder.glob("*.none"):
        path.unlink()


def _needs(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Say what the machine that measures must have."""
    target = manifest.target
    dtypes = {getattr(problem, "dtype", "") for problem in manifest.problems}
    packages = ["numpy", *(["ml_dtypes"] if "bfloat16" in dtypes else [])]
    needs: dict[str, Any] = {
        "run": "python run.py --out records.jsonl",
        "python": ">= 3.11",
        "packages": packages,
        "machine": "x86_64 Linux" if target.kind == "cuda" else f"{target.arch} Linux",
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }
    if target.kind == "cuda":
        return {**needs, "driver": f">= {_DRIVER}", "device": target.arch}
    return {**needs, "features": list(target.features), "threads": target.threads}
