"""Templates: how one family of schedules turns a problem into a tensor program."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from wattune.errors import ScheduleError, UnknownNameError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.space import Space, Value, Values, layout_knobs
from wattune.schedules.target import Target


@dataclass(frozen=True)
class Layout:
    """How the bits of packed arguments are ordered: a format and the knob values that decide it."""

    format: str
    values: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def make(cls, format: str, **values: Value) -> Layout:
        """Build a layout from knob values in any order."""
        return cls(format, tuple(sorted(values.items())))

    def __str__(self) -> str:
        """Return the one-line name that manifests and packed tensors carry."""
        return self.format + "".join(f":{name}={value}" for name, value in self.values)


@dataclass(frozen=True)
class BlockUse:
    """What the longest kernel of a GPU candidate takes of the device.

    ``blocks`` of its grid that have work, and of each: ``threads``, ``registers`` of a thread (an
    estimate), ``shared``: bytes of shared memory.
    """

    blocks: float
    threads: int
    registers: int
    shared: int


@dataclass(frozen=True)
class Counts:
    """What a candidate does, from its schedule alone; features are made of these.

    ``bytes`` moved per memory level (``memory``, ``l3``, ``l2``, ``l1``), ``operations`` per unit
    (``dot``, ``shuffle``, ``alu``, ``tile``: instructions), ``tiles`` by name, ``parallelism``:
    independent tasks, ``registers``: vector registers alive in the inner loop, ``code``: unrolled
    instructions of the inner loop; ``block``: of a GPU, what decides how many blocks run at once.
    """

    bytes: dict[str, float]
    operations: dict[str, float]
    tiles: dict[str, float] = field(default_factory=dict)
    parallelism: float = 1.0
    registers: float = 0.0
    code: float = 0.0
    block: BlockUse | None = None


class Template(ABC):
    """One family of schedules of one operator for one kind of target."""

    name: ClassVar[str]
    operator: ClassVar[str]

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    @abstractmethod
    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether the template can serve the problem on the target."""

    @abstractmethod
    def space(self, problem: Any, target: Target) -> Space:
        """Return the knobs; defaults may depend on the problem and the target."""

    @abstractmethod
    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """Return the layout of the packed arguments under these knob values."""

    @abstractmethod
    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """Return the sizes that the schedule decides, by the names `arguments` uses."""

    @abstractmethod
    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Return the TVM PrimFunc, its parameters in the order of `Operator.arguments`."""

    @abstractmethod
    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return, for each layout-dependent argument, a PrimFunc (source, packed)."""

    @abstractmethod
    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count bytes, operations, tiles and parallelism of a candidate."""

    def unit(self, problem: Any, target: Target, values: Mapping[str, Value]) -> str:
        """Return the unit that may bind a candidate before memory does, by its field in `Limits`.

        Nothing unless a template knows one: it does most of the operations of `Operator.work`.
        """
        return ""

    def source_hash(self) -> str:
        """Digest the source that decides what this template generates."""
        return _hash_folder(Path(import_module(type(self).__module__).__file__ or "").parent)

    def layouts(self, problem: Problem, target: Target) -> Iterator[tuple[Layout, Values]]:
        """Yield each layout the template can read, with the knob values that give it."""
        knobs = layout_knobs(self.space(problem, target).knobs)
        for combination in product(*(knob.values for knob in knobs)):
            values: Values = {k.name: v for k, v in zip(knobs, combination, strict=True)}
            yield self.layout(problem, values), values


@cache
def _hash_folder(folder: Path) -> str:
    """Digest what a template in the folder is made of."""
    digest = hashlib.sha256()
    for path in sources(folder):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def sources(folder: Path) -> tuple[Path, ...]:
    """Return what decides the programs of a folder's templates.

    Its modules and those of the folders beside it that they import from, the vocabulary above them
    and what makes programs.
    """
    beside = re.compile(rf"\bwattune\.schedules\.{folder.parent.name}\.(\w+)")
    folders = [folder]
    for each in folders:
        text = "".join(path.read_text() for path in sorted(each.glob("*.py")))
        found = (folder.parent / name for name in sorted(set(beside.findall(text))))
        folders += [path for path in found if path.is_dir() and path not in folders]
    vocabulary = ("program.py", "areas.py", "attention.py")
    return (
        *(path for each in (*folders, folder.parent) for path in sorted(each.glob("*.py"))),
        *(Path(__file__).with_name(name) for name in vocabulary),
    )


# Modules that define templates, by target kind; a module's TEMPLATES are tried in order, so the
# first applicable one is the default.
_MODULES: dict[str, tuple[str, ...]] = {
    "cpu": (
        "wattune.schedules.cpu.ternary_gemm",
        "wattune.schedules.cpu.attention",
        "wattune.schedules.cpu.selection",
        "wattune.schedules.cpu.routing",
        "wattune.schedules.cpu.kv_cache",
        "wattune.schedules.cpu.quantized_attention",
        "wattune.schedules.cpu.quantized_kv_cache",
        "wattune.schedules.cpu.grouped_gemm",
    ),
    "cuda": (
        "wattune.schedules.cuda.attention",
        "wattune.schedules.cuda.selection",
        "wattune.schedules.cuda.kv_cache",
        "wattune.schedules.cuda.quantized_attention",
        "wattune.schedules.cuda.quantized_kv_cache",
    ),
}


def register_module(kind: str, module: str) -> None:
    """Add a module whose TEMPLATES serve this target kind, after the ones that are known."""
    if module not in _MODULES[kind]:
        _MODULES[kind] = (*_MODULES[kind], module)
        _templates.cache_clear()


@cache
def _templates(kind: str) -> tuple[Template, ...]:
    found: list[Template] = []
    for module in _MODULES[kind]:
        found.extend(import_module(module).TEMPLATES)
    return tuple(found)


def _known(problem: Problem, target: Target) -> tuple[Template, ...]:
    """Return the registered templates; a recorded table brings its own."""
    own: tuple[Template, ...] | None = getattr(problem, "templates", None)
    return _templates(target.kind) if own is None else own


def templates_for(problem: Problem, target: Target) -> tuple[Template, ...]:
    """Return the applicable templates, the default one first."""
    found = tuple(
        t
        for t in _known(problem, target)
        if t.operator == problem.operator and t.applies(problem, target)
    )
    if not found:
        raise ScheduleError(f"no template serves {problem} on {target.kind}:{target.arch}")
    return found


def template_of(candidate: Candidate) -> Template:
    """Return the template a candidate's schedule names."""
    known = {t.name: t for t in _known(candidate.problem, candidate.target)}
    try:
        return known[candidate.schedule.template]
    except KeyError:
        raise UnknownNameError("template", candidate.schedule.template, known) from None


def default_candidate(problem: Problem, target: Target, layout: Layout | None = None) -> Candidate:
    """Return the default schedule of the first applicable template (that reads this layout)."""
    for template in templates_for(problem, target):
        space = template.space(problem, target)
        if layout is not None:
            fixed = next((v for lay, v in template.layouts(problem, target) if lay == layout), None)
            if fixed is None:
                continue
            space = space.restrict(fixed)
        schedule = Schedule.make(template.name, space.default())
        return Candidate(problem, target, schedule)
    raise ScheduleError(f"no template reads layout {layout} for {problem.key}")


def layout_of(candidate: Candidate) -> Layout:
    """Return the layout of a candidate's packed arguments."""
    return template_of(candidate).layout(candidate.problem, candidate.schedule.values)
