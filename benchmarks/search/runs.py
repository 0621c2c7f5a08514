"""One run of one strategy on one space, and the file that keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from benchmarks.compact_spaces import SPACES
from benchmarks.search import gp_peer, kernel_tuner_peer

from wattune.compiler.replay import Recording, read_recording, replay
from wattune.compiler.search.strategy import strategy_names

Peer = Callable[[Recording, str, int, int], tuple[list[float], float]]

# Peers by name: who runs them.
PEERS: dict[str, Peer] = {
    **{f"kernel_tuner:{name}": kernel_tuner_peer.run for name in kernel_tuner_peer.STRATEGIES},
    "gp_ei": gp_peer.run,
}
# These run through our own interface.
OPTUNA = ("optuna:tpe", "optuna:nsga2", "optuna:random")
# Of a small space a search is asked for at most this share: some never come to the last points.
MOST = 0.6
# It walks around its local optima and does not end before it has seen as many points as asked for.
ENDLESS, SMALL = ("kernel_tuner:greedy_ils",), 1000


@dataclass(frozen=True)
class Run:
    """The regret after each improvement: it holds until the next one, or to ``evaluations``.

    ``steps``: (distinct evaluations so far, best / optimum - 1); ``seconds``: of one evaluation.
    """

    space: str
    strategy: str
    seed: int
    evaluations: int
    steps: list[tuple[int, float]]
    seconds: float

    def regret_after(self, count: int) -> float:
        """Return the regret after so many evaluations."""
        return next((r for at, r in reversed(self.steps) if at <= count), float("inf"))

    def to_within(self, share: float) -> float:
        """Return the evaluations to a regret of ``share``; infinite where it never came."""
        return next((float(at) for at, regret in self.steps if regret <= share), float("inf"))


def own_strategies() -> tuple[str, ...]:
    """Return our strategies, without the one that has no choice."""
    return tuple(name for name in strategy_names() if name != "exhaustive")


def strategies() -> tuple[str, ...]:
    """Return everything that is compared."""
    return (*own_strategies(), *OPTUNA, *PEERS)


@cache
def space(name: str) -> Recording:
    """Return a shipped space."""
    return read_recording(SPACES / f"{name}.json.gz")


def space_names() -> tuple[str, ...]:
    """Return the shipped spaces."""
    return tuple(sorted(path.name.removesuffix(".json.gz") for path in SPACES.glob("*.json.gz")))


def fits(name: str, strategy: str) -> bool:
    """Say whether a strategy can be run on a space."""
    return strategy not in ENDLESS or len(space(name).rows) > SMALL


def run(name: str, strategy: str, seed: int, budget: int, batch: int = 1) -> Run:
    """Run a strategy on a shipped space."""
    recorded = space(name)
    budget = min(budget, int(MOST * len(recorded.rows)))
    if strategy in PEERS:
        inner = strategy.partition(":")[2] or strategy
        costs, seconds = PEERS[strategy](recorded, inner, budget, seed)
    else:
        trace = replay(recorded, strategy, budget, seed, batch=batch)
        costs = [evaluation.cost for evaluation in trace.trajectory]
        seconds = float(np.mean(trace.wall_seconds))
    return Run(name, strategy, seed, len(costs), _steps(costs, recorded.optimum()), seconds)


def _steps(costs: list[float], optimum: float) -> list[tuple[int, float]]:
    steps: list[tuple[int, float]] = []
    best = float("inf")
    for at, cost in enumerate(costs, 1):
        if cost < best:
            best = cost
            steps.append((at, round(cost / optimum - 1, 6)))
    return steps


class Kept:
    """Runs in a folder, one file each; those of another budget, batch or space are others."""

    def __init__(self, folder: Path, budget: int, batch: int) -> None:
        """Keep runs of this budget and batch."""
        self._folder, self._settings = folder, (budget, batch)

    def path(self, name: str, strategy: str, seed: int) -> Path:
        """Return the file of a run."""
        content = hashlib.sha256((SPACES / f"{name}.json.gz").read_bytes()).hexdigest()[:8]
        budget, batch = self._settings
        place = f"{name}-{content}/{strategy.replace(':', '-')}"
        return self._folder / place / f"{budget}-{batch}-{seed}.json"

    def get(self, name: str, strategy: str, seed: int) -> Run | None:
        """Return a kept run."""
        path = self.path(name, strategy, seed)
        return Run(**json.loads(path.read_text())) if path.exists() else None

    def put(self, run: Run) -> None:
        """Keep a run."""
        path = self.path(run.space, run.strategy, run.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(run)))
        new.rename(path)
