"""From records to figures: latencies against limits and torch, energies within a band."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattune.compiler.bundle.manifest import Manifest
from wattune.compiler.measure.builder import BuildResult
from wattune.compiler.record_formats import record_from_line
from wattune.ops import Problem, operator, problem_from_json
from wattune.schedules.candidate import Record

Case = Mapping[str, Any]


def records_of(path: Path) -> dict[Problem, list[Record]]:
    """Return the records of a file by problem."""
    found: dict[Problem, list[Record]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = record_from_line(line)
        found.setdefault(record.candidate.problem, []).append(record)
    return found


def summarise(cases: Sequence[Case], bundle: Path, path: Path, band: float) -> list[dict[str, Any]]:
    """Return for each case: candidates, failures, default and best latency, bytes, energies."""
    manifest, records = Manifest.read(bundle), records_of(path)
    found = []
    for case in cases:
        problem = problem_from_json(case["problem"])
        mine = records.get(problem, [])
        valid = [r for r in mine if r.valid]
        default = manifest.of(problem)[0].candidate
        best = min(valid, key=lambda r: r.latency, default=None)
        work = operator(problem.operator).work(problem)
        found.append(
            {
                "name": case["name"],
                "problem": dict(case["problem"]),
                "measured": len({r.candidate for r in valid}),
                "failed": sorted({r.message for r in mine if not r.valid}),
                "default_seconds": min(
                    (r.latency for r in valid if r.candidate == default), default=None
                ),
                "best_seconds": best and best.latency,
                "schedule": best and best.candidate.schedule.to_json(),
                "bytes": work.bytes,
                "operations": work.operations,
                "energy": _energy(valid, band),
            }
        )
    return found


def _energy(valid: Sequence[Record], band: float) -> dict[str, float] | None:
    """Return how far the energies of candidates within a band of the best latency are apart."""
    if not valid:
        return None
    most = band * min(r.latency for r in valid)
    joules = [r.joules for r in valid if r.joules is not None and r.latency <= most]
    spreads = [r.facts.get("energy_spread", 0.0) for r in valid if r.joules is not None]
    if len(joules) < 2:
        return None
    least = min(joules)
    return {
        "candidates": float(len(joules)),
        "least_joules": least,
        "spread": max(joules) / least - 1,
        "noise": max(spreads),
    }


def peer_jobs(cases: Sequence[Case], bundle: Path, path: Path) -> list[dict[str, Any]]:
    """Return what torch is asked for: each case with the library of its best candidate."""
    manifest, records = Manifest.read(bundle), records_of(path)
    jobs = []
    for case in cases:
        problem = problem_from_json(case["problem"])
        valid = [r for r in records.get(problem, []) if r.valid]
        best = min(valid, key=lambda r: r.latency, default=None)
        built = best and _built(manifest, best)
        if not case["small"] and problem.operator == "decode_attention":
            jobs.append(
                {
                    "name": case["name"],
                    "problem": case["problem"],
                    "library": built and str(built.path),
                    "sizes": built.sizes if built else {},
                }
            )
    return jobs


def _built(manifest: Manifest, record: Record) -> BuildResult | None:
    return next((r for r in manifest.results if r.candidate == record.candidate), None)


def tables(results: Mapping[str, Any]) -> str:
    """Return everything as text."""
    limits = results.get("machine", {}).get("limits", {})
    peers: dict[str, list[Mapping[str, Any]]] = {}
    for row in results.get("peers", []):
        peers.setdefault(str(row["name"]), []).append(row)
    lines = list(_rows(results.get("cases", []), limits, peers))
    facts = {**limits, **{r["name"]: r["tflops"] for r in peers.get("bf16 matmul", [])}}
    lines.append("limits: " + ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))
    if found := results.get("sanitizer"):
        lines.append(f"compute-sanitizer: exit status {found['status']}: {found['tail'][-1:]}")
    return "\n".join([*lines, *(f"note: {note}" for note in results["notes"])])


def _rows(
    cases: Sequence[Mapping[str, Any]],
    limits: Mapping[str, float],
    peers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterator[str]:
    heads = ("case", "ok", "bad", "default us", "best us", "GB/s", "of limit", "best torch")
    form = "{:30} {:>3} {:>3} {:>10} {:>9} {:>6} {:>8}  {}"
    yield form.format(*heads)
    for case in cases:
        best, first = case["best_seconds"], case["default_seconds"]
        gbps = case["bytes"] / best * 1e-9 if best else 0.0
        read = limits.get("read_gbps")
        timed = [p for p in peers.get(case["name"], ()) if p.get("seconds")]
        fastest = min(timed, key=lambda p: float(p["seconds"]), default=None)
        text = "-"
        if fastest and best:
            text = f"{fastest['backend']} {fastest['seconds'] / best:.2f}x"
        yield form.format(
            case["name"],
            case["measured"],
            len(case["failed"]),
            f"{first * 1e6:.1f}" if first else "-",
            f"{best * 1e6:.1f}" if best else "-",
            f"{gbps:.0f}" if best else "-",
            f"{gbps / read:.2f}" if read and best else "-",
            text,
        )
        if energy := case["energy"]:
            yield (
                f"  energy of {energy['candidates']:.0f} candidates within the band: from "
                f"{energy['least_joules'] * 1e3:.3f} mJ, {energy['spread']:.1%} apart, "
                f"noise {energy['noise']:.1%}"
            )
