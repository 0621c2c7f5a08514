"""From chosen candidates to the tables of a library: variants, kernels and pack programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import wattune
from wattune.compiler.library.limits import check_limits
from wattune.compiler.library.manifest import Kernel, Manifest, OperatorTable, Pack, Variant
from wattune.compiler.library.variants import entry_names
from wattune.errors import LibraryError
from wattune.ops import Argument, Problem, operator
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.target import Target
from wattune.schedules.template import layout_of, template_of


@dataclass(frozen=True)
class Choice:
    """The candidate that serves a problem, and the record that verified it, if any."""

    candidate: Candidate
    record: Record | None = None

    @property
    def verified(self) -> bool:
        """Say whether the candidate's result was compared with the reference."""
        return self.record is not None and self.record.valid


@dataclass(frozen=True)
class Plan:
    """A library's manifest and, by symbol, the candidates that its functions are lowered from.

    ``packs`` maps a symbol to the candidate and the argument that its pack program fills.
    """

    manifest: Manifest
    kernels: dict[str, Candidate]
    packs: dict[str, tuple[Candidate, str]]


def make_plan(choices: Sequence[Choice], target: Target, also: Sequence[str] = ()) -> Plan:
    """Arrange choices by operator and variant; raises `LibraryError` for what cannot be.

    ``also`` names architectures of GPUs that get code beside the target's.
    """
    kernels: dict[str, Candidate] = {}
    packs: dict[str, tuple[Candidate, str]] = {}
    tables = []
    for name in dict.fromkeys(choice.candidate.problem.operator for choice in choices):
        mine = [choice for choice in choices if choice.candidate.problem.operator == name]
        symbols = {choice.candidate: f"{name}_{i}" for i, choice in enumerate(mine)}
        kernels.update({symbol: candidate for candidate, symbol in symbols.items()})
        found, programs = _packs(name, [choice.candidate for choice in mine])
        packs.update(programs)
        tables.append(_table(name, mine, symbols, found))
    manifest = Manifest(
        wattune=wattune.__version__,
        target=target.to_json(),
        verified=all(choice.verified for choice in choices),
        created=round(time.time(), 3),
        operators=tuple(tables),
        archs=(target.arch, *also) if target.kind == "cuda" else (),
    )
    return Plan(manifest, kernels, packs)


def _table(
    name: str,
    choices: Sequence[Choice],
    symbols: dict[Candidate, str],
    packs: tuple[Pack, ...],
) -> OperatorTable:
    groups: dict[str, list[Choice]] = {}
    for choice in choices:
        groups.setdefault(choice.candidate.problem.static_key, []).append(choice)
    problem = operator(name).problem
    statics = [_static(group[0].candidate.problem) for group in groups.values()]
    entries = entry_names(name, statics, {f.name: f.default for f in fields(problem)})
    table = OperatorTable(
        name=name,
        signature=operator(name).signature,
        runtime=tuple(problem.runtime),
        open_ended=tuple(problem.open_ended),
        free=tuple(problem.free),
        fields={f.name: str(f.type) for f in fields(problem) if f.name not in problem.runtime},
        variants=tuple(
            _variant(entry, group, symbols)
            for entry, group in zip(entries, groups.values(), strict=True)
        ),
        packs=packs,
    )
    check_limits(table)
    return table


def _static(problem: Problem) -> dict[str, Any]:
    """Return the fields that all buckets have in common."""
    return {k: v for k, v in problem.to_json().items() if k not in problem.runtime}


def _variant(entry: str, group: Sequence[Choice], symbols: dict[Candidate, str]) -> Variant:
    ordered = sorted(group, key=lambda c: tuple(c.candidate.problem.sizes.values()))
    first = ordered[0].candidate
    problem = first.problem
    arguments = _fixed_arguments(first)
    for choice in ordered[1:]:
        if _fixed_arguments(choice.candidate) != arguments:
            raise LibraryError(
                f"{choice.candidate.problem} and {problem} read packed data of different sizes"
            )
    kernels: list[Kernel] = []
    for choice in ordered:
        kernels.append(_kernel(choice, symbols[choice.candidate], kernels[-1:]))
    return Variant(
        entry=entry,
        problem=_static(problem),
        data=problem.shared_data() or problem.static_key,
        layout=str(layout_of(first)),
        arguments=arguments,
        kernels=tuple(kernels),
        derived=problem.derived,
    )


def _kernel(choice: Choice, symbol: str, before: Sequence[Kernel]) -> Kernel:
    candidate, problem = choice.candidate, choice.candidate.problem
    # Only one run-time size has an order, and so a lower end.
    lower = before[0].upper if before and len(problem.sizes) == 1 else {}
    record = choice.record
    return Kernel(
        symbol=symbol,
        lower={name: lower.get(name, 0) for name in problem.sizes},
        upper=problem.sizes,
        sizes=_sizes(candidate),
        template=candidate.schedule.template,
        knobs=dict(candidate.schedule.values),
        verified=choice.verified,
        seconds=record.latency if record is not None and record.valid else None,
    )


def _sizes(candidate: Candidate) -> dict[str, int]:
    template = template_of(candidate)
    return template.sizes(candidate.problem, candidate.target, candidate.schedule.values)


def _fixed_arguments(candidate: Candidate) -> tuple[Argument, ...]:
    """Return the arguments with the sizes that the layout decides; workspaces keep the name."""
    sizes = _sizes(candidate)
    return tuple(
        argument if argument.role == "workspace" else _with_sizes(argument, sizes)
        for argument in operator(candidate.problem.operator).arguments(candidate.problem)
    )


def _with_sizes(argument: Argument, sizes: dict[str, int]) -> Argument:
    shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in argument.shape)
    return replace(argument, shape=shape)


def _packs(
    name: str, candidates: Sequence[Candidate]
) -> tuple[tuple[Pack, ...], dict[str, tuple[Candidate, str]]]:
    """Return one pack program for each source, and refuse a source with two layouts."""
    found: dict[Any, Pack] = {}
    programs: dict[str, tuple[Candidate, str]] = {}
    for candidate in candidates:
        layout = str(layout_of(candidate))
        for argument in _fixed_arguments(candidate):
            if not argument.layout_dependent or argument.role != "packed":
                continue
            key = (argument.name, argument.source)
            if key not in found:
                symbol = f"pack_{name}_{argument.name}_{len(found)}"
                found[key] = Pack(symbol, argument, layout)
                programs[symbol] = (candidate, argument.name)
            elif found[key].layout != layout:
                raise LibraryError(_two_layouts(candidate.problem, argument, found[key], layout))
    return tuple(found.values()), programs


def _two_layouts(problem: Problem, argument: Argument, pack: Pack, layout: str) -> str:
    shape = argument.source.shape if argument.source else argument.shape
    return (
        f"{problem.operator}: {argument.name} from {list(shape)} would have two layouts in one "
        f"library, {pack.layout} and {layout}; export the problems as two libraries, or fix the "
        "same format in both"
    )
