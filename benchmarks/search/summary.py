"""What many runs say: medians with bootstrap intervals, and means over spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from benchmarks.search.runs import Run

# Evaluations after which the regret is compared, and the regret that counts as found.
STEPS = (50, 100, 220)
WITHIN = 0.05
_RESAMPLES = 2000


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval of the median; infinite where it never came so far."""
    array = np.sort(np.asarray(values, np.float64))
    rng = np.random.default_rng(0)
    drawn = np.sort(array[rng.integers(0, len(array), (_RESAMPLES, len(array)))], axis=1)
    medians = _middle(drawn)
    # Order statistics, without arithmetic: infinities stay what they are.
    tail = (1 - level) / 2
    low, high = (np.quantile(medians, q, method="nearest") for q in (tail, 1 - tail))
    return float(low), float(high)


def median(values: Sequence[float]) -> float:
    """Return the median; of an even number the upper one where the mean would be infinite."""
    return float(_middle(np.sort(np.asarray(values, np.float64))[None])[0])


def _middle(ordered: Any) -> Any:
    count = ordered.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2


def row(runs: Sequence[Run], budget: int) -> dict[str, Any]:
    """Return one strategy's figures on one space; None where a median is beyond the budget."""
    found = _figure([run.to_within(WITHIN) for run in runs])
    regrets = {
        str(step): _figure([run.regret_after(step) for run in runs])
        for step in STEPS
        if step <= budget
    }
    return {
        "space": runs[0].space,
        "strategy": runs[0].strategy,
        "seeds": len(runs),
        "evaluations_to_5%": found,
        "reached": sum(np.isfinite(run.to_within(WITHIN)) for run in runs) / len(runs),
        "regret": regrets,
        "seconds_per_evaluation": median([run.seconds for run in runs]),
    }


def _figure(values: Sequence[float]) -> dict[str, float | None]:
    low, high = interval(values)
    named = {"median": median(values), "low": low, "high": high}
    return {name: value if np.isfinite(value) else None for name, value in named.items()}


def overall(rows: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """Return each strategy's means over the spaces that all strategies have been run on.

    Evaluations: the geometric mean of the medians, where one beyond the budget counts as the
    budget, so that the mean is then ``at_least`` this. Regrets: the mean of the medians.
    """
    spaces = {name: {r["space"] for r in rows if r["strategy"] == name} for name in _names(rows)}
    common = set.intersection(*spaces.values()) if spaces else set()
    found = []
    for name in spaces:
        mine = [r for r in rows if r["strategy"] == name and r["space"] in common]
        if not mine:
            continue
        needed = [r["evaluations_to_5%"]["median"] for r in mine]
        counted = [budget if value is None else value for value in needed]
        found.append(
            {
                "strategy": name,
                "spaces": len(mine),
                "evaluations_to_5%": float(np.exp(np.mean(np.log(counted)))),
                "at_least": None in needed,
                "regret": {step: _mean(mine, step) for step in mine[0]["regret"]},
                "seconds_per_evaluation": median([r["seconds_per_evaluation"] for r in mine]),
            }
        )
    return sorted(found, key=lambda entry: float(entry["evaluations_to_5%"]))


def _mean(rows: Sequence[dict[str, Any]], step: str) -> float | None:
    medians = [r["regret"][step]["median"] for r in rows]
    return None if None in medians else float(np.mean(medians))


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["strategy"] for r in rows))


def against(rows: Sequence[dict[str, Any]], is_peer: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Compare each of ours with the best peer of each space and step.

    A win or a loss is a median outside the other's interval; anything else is a tie.
    """
    found = []
    for name in [n for n in _names(rows) if not is_peer(n)]:
        counts = {"wins": 0, "ties": 0, "losses": 0}
        for mine in [r for r in rows if r["strategy"] == name]:
            peers = [r for r in rows if is_peer(r["strategy"]) and r["space"] == mine["space"]]
            for step, figure in mine["regret"].items():
                if peers:
                    best = min(
                        (r["regret"][step] for r in peers), key=lambda f: _or_inf(f["median"])
                    )
                    counts[_compared(figure, best)] += 1
        found.append({"strategy": name, **counts})
    return found


def _compared(mine: dict[str, float | None], other: dict[str, float | None]) -> str:
    value, best = _or_inf(mine["median"]), _or_inf(other["median"])
    if value < best and value < _or_inf(other["low"]) and best > _or_inf(mine["high"]):
        return "wins"
    if value > best and value > _or_inf(other["high"]) and best < _or_inf(mine["low"]):
        return "losses"
    return "ties"


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value
