"""Check CUDA kernels on the CPU: the same host function and launcher, an emulated driver."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.emulator.cuda import driver
from tests.emulator.cuda.image import host_image

from wattune.compiler.build import build_candidate, decided_sizes
from wattune.compiler.cuda import device_code
from wattune.compiler.measure.cases import Binder
from wattune.compiler.measure.ffi import Library
from wattune.compiler.measure.verify import check, verify
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, templates_for

HOPPER = Target.parse("cuda:sm_90a")
# So few SMs that the blocks of a persistent grid have several pieces of work.
TINY = dataclasses.replace(HOPPER, cores=2)
AMPERE = Target.parse("cuda:sm_80")


def emulated_image(source: str, archs: Sequence[str], registers: int = 0) -> device_code.Image:
    """Compile a source for the CPU instead of the GPU."""
    return device_code.Image(host_image(source), tuple(archs), {})


def check_kernel(
    problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
    target: Target = HOPPER,
    template: str = "",
    seed: int = 0,
    **knobs: Value,
) -> None:
    """Build a candidate for the emulator and verify it as tuning does.

    Both cases of `verify`: the bucket's upper end, and an odd size with ragged, empty and poisoned
    inputs in the least kind memory. ``knobs`` change the default schedule of ``template``.
    """
    candidate = candidate_of(problem, target, template, knobs)
    with emulated(candidate, monkeypatch) as library:
        verify(Binder(seed, target.kind), problem, library, None, decided_sizes(candidate))


def check_other_sizes(problem: Problem, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Build the default candidate and check it at sizes other than its bucket's, on hard inputs."""
    candidate = candidate_of(problem, HOPPER, "", {})
    other = dataclasses.replace(problem, **sizes)
    with emulated(candidate, monkeypatch) as library:
        binder = Binder(0, HOPPER.kind)
        check(binder.bind(other, None, decided_sizes(candidate), tight=True), library, binder.place)


def check_samples(problem: Problem, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
    """Check some points of the default template's space."""
    space = templates_for(problem, HOPPER)[0].space(problem, HOPPER)
    rng = np.random.default_rng(0)
    for _ in range(count):
        values = space.sample(rng)
        assert values is not None
        check_kernel(problem, monkeypatch, **values)  # type: ignore[arg-type]


@contextmanager
def emulated(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Build a candidate for the emulator and open it."""
    driver.install()
    monkeypatch.setattr(device_code, "compile_image", emulated_image)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        build_candidate(candidate, path)
        library = Library(str(path))
        try:
            yield library
        finally:
            library.close()


def candidate_of(
    problem: Problem, target: Target, template: str, knobs: Mapping[str, Any]
) -> Candidate:
    """Return the default candidate of a template with some knobs changed."""
    if not template:
        default = default_candidate(problem, target)
    else:
        found = next(t for t in templates_for(problem, target) if t.name == template)
        schedule = Schedule.make(template, found.space(problem, target).default())
        default = Candidate(problem, target, schedule)
    values = {**default.schedule.values, **knobs}
    return Candidate(problem, target, Schedule.make(default.schedule.template, values))
