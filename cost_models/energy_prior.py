"""The physical prior of power: a static part, and energy for every byte and every operation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.matrix import Rows
from wattune.cost_models.uncertainty import nonnegative_least_squares

Floats = NDArray[np.float64]

STATIC = "static"
_COUNTED = ("bytes.", "operations.")
# Fewer records a constant than this and the static power alone is fitted.
_RECORDS_A_CONSTANT = 3
# What the constants cannot say even of a machine they were fitted on, and of one they were not.
_LEAST_STD, _UNSEEN_STD = 0.05, 0.5


@dataclass(frozen=True)
class EnergyConstants:
    """One machine's: ``watts`` at all times, ``joules`` of a byte or an operation by feature.

    ``std`` is that of ln(measured / predicted power) on the records of the fit.
    """

    watts: float
    joules: Mapping[str, float] = field(default_factory=dict)
    std: float = _UNSEEN_STD

    @classmethod
    def fit(cls, counts: Mapping[str, Floats], seconds: Floats, power: Floats) -> Self:
        """Fit to runs [n] with counts by feature [n]; no constant is negative.

        What is minimised is the relative error of the power.
        """
        names = [name for name, amount in counts.items() if amount.any()]
        if len(power) < _RECORDS_A_CONSTANT * (len(names) + 1):
            watts = float(np.exp(np.log(power).mean()))
            return cls(watts, {}, cls._spread(np.full(len(power), watts), power))
        rates = [np.ones(len(power)), *(counts[name] / seconds for name in names)]
        matrix = np.stack(rates, axis=1) / power[:, None]
        # Watts and joules a byte are 12 orders of magnitude apart.
        scale = matrix.max(axis=0)
        found = nonnegative_least_squares(matrix / scale, np.ones(len(power))) / scale
        constants = cls(float(found[0]), dict(zip(names, map(float, found[1:]), strict=True)))
        predicted = constants.power(counts, seconds)
        return cls(constants.watts, constants.joules, cls._spread(predicted, power))

    @staticmethod
    def _spread(predicted: Floats, power: Floats) -> float:
        error = np.log(np.maximum(predicted, np.finfo(float).tiny) / power)
        return max(float(np.sqrt(np.mean(error**2))), _LEAST_STD)

    def power(self, counts: Mapping[str, Floats], seconds: Floats) -> Floats:
        """Return the mean power in watts of runs that take these seconds, [n]."""
        found = np.full(len(seconds), self.watts)
        for name, each in self.joules.items():
            if name in counts:
                found += each * counts[name] / seconds
        return found


@dataclass(frozen=True)
class EnergyPrior:
    """The constants of every machine that joules were measured on."""

    machines: Mapping[str, EnergyConstants] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        columns: Sequence[str],
        matrix: Rows,
        latency: Floats,
        power: Floats,
        machines: Sequence[str],
    ) -> Self:
        """Fit to features [n, columns], ln(seconds) and ln(watts) [n], and the machines' names."""
        found = {}
        for machine in dict.fromkeys(machines):
            at = np.array([name == machine for name in machines])
            seconds, watts = np.exp(latency[at]), np.exp(power[at])
            found[machine] = EnergyConstants.fit(_counts(columns, matrix[at]), seconds, watts)
        return cls(found)

    def log_power(
        self, columns: Sequence[str], matrix: Rows, latency: Floats, machines: Sequence[str]
    ) -> Floats:
        """Return ln(watts), [n]; for a machine without joules the mean of those that have some."""
        counts, seconds = _counts(columns, matrix), np.exp(latency)
        logs: dict[str, Floats] = {
            name: np.log(np.maximum(each.power(counts, seconds), np.finfo(float).tiny))
            for name, each in self.machines.items()
        }
        common: Floats = np.mean(list(logs.values()), axis=0)
        rows = [logs.get(name, common)[at] for at, name in enumerate(machines)]
        return np.array(rows, np.float64)

    def std(self, machines: Sequence[str]) -> Floats:
        """Return the standard deviation of ln(watts) where nothing more was learned, [n]."""
        known = {name: each.std for name, each in self.machines.items()}
        return np.array([known.get(name, _UNSEEN_STD) for name in machines], np.float64)

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            name: {STATIC: each.watts, "joules": dict(each.joules), "std": each.std}
            for name, each in self.machines.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the prior that `to_state` described."""
        return cls(
            {
                name: EnergyConstants(
                    float(each[STATIC]),
                    {key: float(value) for key, value in each["joules"].items()},
                    float(each["std"]),
                )
                for name, each in state.items()
            }
        )


def _counts(columns: Sequence[str], matrix: Rows) -> dict[str, Floats]:
    """Return bytes and operations themselves; features hold log2(1 + x), absent ones are 0."""
    return dict(_columns(columns, matrix))


def _columns(columns: Sequence[str], matrix: Rows) -> Iterator[tuple[str, Floats]]:
    for at, name in enumerate(columns[: matrix.shape[1]]):
        if name.startswith(_COUNTED):
            exponent = matrix[:, at].astype(np.float64) * math.log(2.0)
            yield name, np.nan_to_num(np.expm1(exponent))
