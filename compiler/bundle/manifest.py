"""The one file that says what a bundle holds and what it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from wattune.compiler.measure.builder import BuildResult
from wattune.errors import RecordError, WattuneError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate
from wattune.schedules.target import Target

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds: results of builds, for each problem its default schedule first.

    ``needs`` is for people: what the machine must have. ``versions`` are those of the compiler;
    ``image`` names the kernel that measures a GPU's limits. Paths are relative to the bundle.
    """

    target: Target
    mode: str
    seed: int
    needs: Mapping[str, Any] = field(hash=False)
    versions: Mapping[str, str] = field(hash=False)
    results: tuple[BuildResult, ...]
    image: str = ""

    @property
    def problems(self) -> list[Problem]:
        """Return the problems, each once."""
        return list(dict.fromkeys(result.candidate.problem for result in self.results))

    def of(self, problem: Problem) -> list[BuildResult]:
        """Return the results of a problem, the default schedule's first."""
        return [result for result in self.results if result.candidate.problem == problem]

    def write(self, folder: Path) -> None:
        """Write the file."""
        data = {
            "format": FORMAT,
            "needs": dict(self.needs),
            "target": self.target.to_json(),
            "mode": self.mode,
            "seed": self.seed,
            "versions": dict(self.versions),
            "image": self.image,
            "candidates": [_entry(result, folder) for result in self.results],
        }
        (folder / NAME).write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file; `RecordError` says what is wrong with it."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise RecordError(f"{path}: format is {data['format']!r}; allowed: {FORMAT}")
            return cls(
                Target.from_json(data["target"]),
                data["mode"],
                data["seed"],
                data["needs"],
                data["versions"],
                tuple(_result(entry, data["target"], folder) for entry in data["candidates"]),
                data["image"],
            )
        except RecordError:
            raise
        except (OSError, ValueError, KeyError, TypeError, WattuneError) as error:
            raise RecordError(f"{path}: {type(error).__name__}: {error}") from error


def _entry(result: BuildResult, folder: Path) -> dict[str, Any]:
    path, pack = result.path, result.pack
    return {
        **{k: v for k, v in result.candidate.to_json().items() if k != "target"},
        "library": None if path is None else str(path.relative_to(folder)),
        "pack": None if pack is None else str(Path(pack).relative_to(folder)),
        "sizes": result.sizes,
        "facts": result.facts,
        "source_hash": result.source_hash,
        "failure": result.failure,
        "message": result.message,
    }


def _result(entry: Mapping[str, Any], target: Mapping[str, Any], folder: Path) -> BuildResult:
    library, pack = entry["library"], entry["pack"]
    return BuildResult(
        Candidate.from_json({**entry, "target": target}),
        None if library is None else folder / library,
        entry["failure"],
        entry["message"],
        entry["facts"],
        entry["sizes"],
        None if pack is None else str(folder / pack),
        entry["source_hash"],
    )
