"""Gradient-boosted trees as plain values: fit, predict, keep as text. All of XGBoost is in here."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.matrix import Rows
from wattune.cost_models.uncertainty import Calibration
from wattune.errors import MissingDependencyError

Floats = NDArray[np.float64]

# One thread: the other cores are building and measuring candidates meanwhile. 64 bins are more
# than knobs have values; half the columns at each split keeps near-copies of one fact apart.
COMMON: dict[str, Any] = {
    "nthread": 1,
    "tree_method": "hist",
    "max_bin": 64,
    "colsample_bynode": 0.5,
    "verbosity": 0,
}
REGRESSION: dict[str, Any] = {
    "objective": "reg:squarederror",
    "max_depth": 6,
    "eta": 0.12,
    "min_child_weight": 0.1,
    # Records weigh 0.1 to 1: with the usual 1 a leaf of a few would say almost nothing.
    "lambda": 0.3,
    "rounds": 80,
}
# The hessian of a logistic loss is at most 1/4, so that a leaf needs less of it.
CLASSIFICATION: dict[str, Any] = {
    "objective": "binary:logistic",
    "max_depth": 4,
    "eta": 0.2,
    "min_child_weight": 0.2,
    "rounds": 40,
}


@cache
def require_xgboost() -> Any:
    """Return the xgboost module; raises `MissingDependencyError` where there is none."""
    try:
        import xgboost
    except ImportError as error:
        raise MissingDependencyError("xgboost", "the learned cost model") from error
    return xgboost


@dataclass(frozen=True)
class Trees:
    """A few boosted models of the same thing; each was shown all but its share of the rows.

    ``columns`` of the feature matrix are used: those that were not constant in training.
    ``calibration`` comes from the errors that members made on the rows they were not shown,
    ``errors`` [n].
    """

    columns: NDArray[np.int64]
    boosters: tuple[Any, ...]
    calibration: Calibration = field(default_factory=Calibration)
    errors: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls,
        settings: Mapping[str, Any],
        matrix: Rows,
        labels: Floats,
        weights: Floats,
        members: int,
        seed: int,
    ) -> Self:
        """Train on [n, columns] and labels [n]; a single member is shown everything."""
        xgboost = require_xgboost()
        parameters = {**COMMON, **settings}
        rounds = parameters.pop("rounds")
        columns = varying(matrix)
        shown = np.ascontiguousarray(matrix[:, columns])
        data = xgboost.QuantileDMatrix(shown, label=labels, max_bin=COMMON["max_bin"], nthread=1)
        share = np.random.default_rng(seed).permutation(len(labels)) % members
        boosters = []
        for member in range(members):
            data.set_weight(np.where((share == member) & (members > 1), 0.0, weights))
            boosters.append(xgboost.train({**parameters, "seed": seed + member}, data, rounds))
        trees = cls(columns, tuple(boosters))
        if members == 1:
            return trees
        guesses = trees._members(matrix)
        errors = guesses[share, np.arange(len(labels))] - labels
        calibration = Calibration.fit(errors, guesses.std(axis=0), weights)
        return replace(trees, calibration=calibration, errors=errors)

    def predict(self, matrix: Rows) -> tuple[Floats, Floats]:
        """Return the mean and its standard deviation, [n] each."""
        guesses = self._members(matrix)
        return guesses.mean(axis=0), self.calibration.std(guesses.std(axis=0))

    def _members(self, matrix: Rows) -> Floats:
        """Return what each member says, [members, n]."""
        shown = np.ascontiguousarray(matrix[:, self.columns])
        if not len(shown):
            return np.zeros((len(self.boosters), 0))
        return np.stack([b.inplace_predict(shown).astype(np.float64) for b in self.boosters])

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""
        boosters = [pack_bytes(bytes(b.save_raw("ubj"))) for b in self.boosters]
        return {
            "columns": self.columns.tolist(),
            "boosters": boosters,
            "calibration": self.calibration.to_state(),
            "errors": pack_bytes(self.errors.astype("<f8").tobytes()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the trees that `to_state` described."""
        xgboost = require_xgboost()
        boosters = []
        for text in state["boosters"]:
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(unpack_bytes(text)))
            boosters.append(booster)
        columns = np.array(state["columns"], np.int64)
        errors = np.frombuffer(unpack_bytes(state["errors"]), "<f8").astype(np.float64)
        return cls(columns, tuple(boosters), Calibration.from_state(state["calibration"]), errors)


def varying(matrix: Rows) -> NDArray[np.int64]:
    """Return the columns with at least two values, absence being one; the first if none has."""
    first = matrix[:1]
    same = (matrix == first) | (np.isnan(matrix) & np.isnan(first))
    found = np.flatnonzero(~same.all(axis=0))
    return found if len(found) else np.zeros(1, np.int64)


def pack_bytes(data: bytes) -> str:
    """Return bytes as short text."""
    return base64.b64encode(zlib.compress(data)).decode()


def unpack_bytes(text: str) -> bytes:
    """Return the bytes that `pack_bytes` wrote; a `ValueError` where the text is damaged."""
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
