"""What every cost model can do: learn from records, predict candidates, be kept as plain data."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.errors import DatabaseError, UnknownNameError
from wattune.schedules.candidate import Candidate, Record

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What a model expects of n candidates; every array has shape [n].

    ``latency`` in seconds, ``latency_std`` of its natural logarithm, ``valid`` the probability
    that the candidate builds, runs and is right. ``energy`` in joules per run and ``energy_std``
    of its logarithm are None where no record has energy: a model never makes energy up.
    """

    latency: Floats
    latency_std: Floats
    valid: Floats
    energy: Floats | None = None
    energy_std: Floats | None = None

    @classmethod
    def joined(cls, one: Prediction, other: Prediction) -> Prediction:
        """Return the predictions of one model for these candidates and then those, [n + m]."""
        return cls(
            np.append(one.latency, other.latency),
            np.append(one.latency_std, other.latency_std),
            np.append(one.valid, other.valid),
            _appended(one.energy, other.energy),
            _appended(one.energy_std, other.energy_std),
        )


def _appended(one: Floats | None, other: Floats | None) -> Floats | None:
    return None if one is None or other is None else np.append(one, other)


class CostModel(ABC):
    """Predicts candidates of any operator on any target from the records it has seen."""

    name: ClassVar[str]

    @abstractmethod
    def update(self, records: Sequence[Record]) -> None:
        """Learn from records, new ones or all so far: one that was seen before changes nothing."""

    @abstractmethod
    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Predict latency, energy and validity of candidates."""

    @abstractmethod
    def to_state(self) -> dict[str, Any]:
        """Return everything the model knows as plain data that JSON can hold."""

    @abstractmethod
    def from_state(self, state: Mapping[str, Any]) -> None:
        """Become the model that `to_state` described: predictions are equal to the last bit."""

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file."""
        Path(path).write_text(json.dumps({"cost_model": self.name, **self.to_state()}))

    def load(self, path: str | Path) -> None:
        """Read a file that `save` wrote; raises `DatabaseError` where it is another's."""
        try:
            state = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DatabaseError(f"cost model {path} cannot be read: {error}") from error
        found = state.get("cost_model") if isinstance(state, dict) else None
        if found != self.name:
            raise DatabaseError(f"cost model {path} is of kind {found!r}; expected {self.name!r}")
        try:
            self.from_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"cost model {path} is damaged ({type(error).__name__}: {error}); train a new one"
            ) from error


# Name -> module and class; imported when asked for, so that one model's dependencies are not every
# model's.
_MODELS: dict[str, tuple[str, str]] = {
    "xgboost": ("xgboost_model", "XGBoostModel"),
    "mlp": ("mlp_model", "MLPModel"),
    "prior": ("prior_model", "PriorModel"),
    "random": ("random_model", "RandomModel"),
}


def model_names() -> tuple[str, ...]:
    """Return the names of all cost models."""
    return tuple(_MODELS)


def cost_model(name: str, **options: Any) -> CostModel:
    """Build a cost model: ``xgboost``, ``mlp``, ``prior`` (physics alone) or ``random``."""
    return _class_of(name)(**options)


def model_options(name: str) -> tuple[str, ...]:
    """Return the options that `cost_model` takes for this name."""
    return tuple(signature(_class_of(name)).parameters)


def _class_of(name: str) -> type[CostModel]:
    if name not in _MODELS:
        raise UnknownNameError("cost model", name, _MODELS)
    module, attribute = _MODELS[name]
    found: type[CostModel] = getattr(import_module(f"wattune.cost_models.{module}"), attribute)
    return found
