"""What a run prints last: the best candidate of each problem beside its default and the limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wattune.compiler.bundle.manifest import Manifest
from wattune.compiler.bundle.results import Results
from wattune.ops import Problem, operator

_COLUMNS = ("problem", "measured", "default us", "best us", "faster", "GB/s", "of limit")
_ENERGY = ("default mJ", "least mJ", "saved")


def table(manifest: Manifest, results: Results, limits: Mapping[str, float]) -> str:
    """Return lines of columns; ``of limit`` is of the read bandwidth measured in this run."""
    problems = manifest.problems
    with_energy = any(
        results.energy(r.candidate) is not None for p in problems for r in results.records(p)
    )
    columns = _COLUMNS + (_ENERGY if with_energy else ())
    rows = [row[: len(columns)] for p in problems for row in _rows(manifest, p, results, limits)]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in (columns, *rows)]
    if limits:
        facts = ", ".join(f"{name} {value:.4g}" for name, value in limits.items())
        lines.append(f"limits of this run: {facts}")
    if failed := results.failures():
        lines.append(f"{len(failed)} candidates failed:")
        lines += [f"  {r.failure}: {r.candidate.problem}: {r.message}" for r in failed[:5]]
        lines += [f"  and {len(failed) - 5} more"] if len(failed) > 5 else []
    return "\n".join(lines)


def _rows(
    manifest: Manifest, problem: Problem, results: Results, limits: Mapping[str, float]
) -> Iterator[tuple[str, ...]]:
    known = {record.candidate: record for record in results.records(problem)}
    if not known:
        yield (str(problem), *("-" for _ in (*_COLUMNS[1:], *_ENERGY)))
        return
    best = min(known.values(), key=lambda record: record.latency)
    first = known.get(manifest.of(problem)[0].candidate)
    gbps = operator(problem.operator).work(problem).bytes / best.latency * 1e-9
    limit = limits.get("read_gbps")
    joules = {c: j for c in known if (j := results.energy(c)) is not None}
    least = min(joules.values(), default=None)
    default_joules = joules.get(first.candidate) if first else None
    yield (
        str(problem),
        str(len(known)),
        f"{first.latency * 1e6:.1f}" if first else "-",
        f"{best.latency * 1e6:.1f}",
        f"{first.latency / best.latency:.2f}x" if first else "-",
        f"{gbps:.0f}",
        f"{gbps / limit:.2f}" if limit else "-",
        f"{default_joules * 1e3:.3f}" if default_joules else "-",
        f"{least * 1e3:.3f}" if least else "-",
        f"{1 - least / default_joules:.1%}" if least and default_joules else "-",
    )


def _aligned(cells: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    first, *rest = zip(cells, widths, strict=True)
    yield first[0].ljust(first[1])
    for cell, width in rest:
        yield cell.rjust(width)
