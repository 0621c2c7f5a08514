"""Small neural networks as plain values: fit, predict, keep as text. All of torch is in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.cost_models.boosting import pack_bytes, unpack_bytes, varying
from wattune.cost_models.matrix import Rows
from wattune.cost_models.uncertainty import Calibration
from wattune.errors import MissingDependencyError

Floats = NDArray[np.float64]
Layers = tuple[tuple[Rows, Rows], ...]

# Two hidden layers; a few hundred steps of a minibatch keep a training below a second.
HIDDEN = 64
STEPS = 250
BATCH = 96
RATE = 5e-3
DECAY = 1e-2
# What is this many standard deviations from anything seen is no further away than that.
_CLIP = 3.0


@cache
def require_torch() -> Any:
    """Return the torch module; raises `MissingDependencyError` where there is none."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "the mlp cost model") from error
    return torch


@dataclass(frozen=True)
class Scaling:
    """Which columns are used, and what makes their numbers small: absent ones become 0."""

    columns: NDArray[np.int64]
    mean: Rows
    std: Rows

    @classmethod
    def fit(cls, matrix: Rows) -> Self:
        """Look at the columns that vary, absence being a value."""
        columns = varying(matrix)
        shown = matrix[:, columns]
        known = ~np.isnan(shown)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, shown, 0).sum(axis=0) / count
        square = np.where(known, (shown - mean) ** 2, 0).sum(axis=0) / count
        std = np.sqrt(square)
        return cls(columns, mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32))

    def apply(self, matrix: Rows) -> Rows:
        """Return [n, columns] without absent numbers."""
        scaled = (matrix[:, self.columns] - self.mean) / self.std
        found: Rows = np.clip(np.nan_to_num(scaled), -_CLIP, _CLIP).astype(np.float32)
        return found


@dataclass(frozen=True)
class Networks:
    """A few networks of the same thing; each was shown all but its share of the rows.

    ``layers``: weights [members, in, out] and biases [members, 1, out] of each layer; the output
    is in units of ``spread``.
    """

    scaling: Scaling
    layers: Layers
    spread: float
    calibration: Calibration

    @classmethod
    def fit(
        cls,
        matrix: Rows,
        labels: Floats,
        weights: Floats,
        groups: Sequence[str],
        members: int,
        seed: int,
    ) -> Self:
        """Train on [n, columns] and labels [n]; pairs are ranked within each group."""
        scaling = Scaling.fit(matrix)
        spread = max(float(labels.std()), 1e-3)
        share = np.random.default_rng(seed).permutation(len(labels)) % members
        shown = (share != np.arange(members)[:, None]) * weights
        _, numbers = np.unique(np.asarray(groups), return_inverse=True)
        inputs = scaling.apply(matrix)
        targets = (labels / spread).astype(np.float32)
        layers = _train(inputs, targets, shown.astype(np.float32), numbers, seed)
        guesses = forward(layers, inputs).astype(np.float64) * spread
        blind = guesses[share, np.arange(len(labels))]
        calibration = Calibration.fit(blind - labels, guesses.std(axis=0), weights)
        return cls(scaling, layers, spread, calibration)

    def predict(self, matrix: Rows) -> tuple[Floats, Floats]:
        """Return the mean and its standard deviation, [n] each."""
        guesses = forward(self.layers, self.scaling.apply(matrix)).astype(np.float64) * self.spread
        return guesses.mean(axis=0), self.calibration.std(guesses.std(axis=0))

    def to_state(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "columns": self.scaling.columns.tolist(),
            "mean": _pack(self.scaling.mean),
            "std": _pack(self.scaling.std),
            "layers": [[_pack(weight), _pack(bias)] for weight, bias in self.layers],
            "spread": self.spread,
            "calibration": self.calibration.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the networks that `to_state` described."""
        columns = np.array(state["columns"], np.int64)
        scaling = Scaling(columns, _unpack(state["mean"]), _unpack(state["std"]))
        layers = tuple((_unpack(weight), _unpack(bias)) for weight, bias in state["layers"])
        calibration = Calibration.from_state(state["calibration"])
        return cls(scaling, layers, float(state["spread"]), calibration)


def forward(layers: Layers, inputs: Rows) -> Rows:
    """Return what each member says of inputs [n, columns], [members, n]."""
    hidden = np.broadcast_to(inputs, (layers[0][0].shape[0], *inputs.shape))
    for weight, bias in layers[:-1]:
        hidden = hidden @ weight + bias
        hidden = hidden / (1 + np.exp(-hidden))
    weight, bias = layers[-1]
    found: Rows = (hidden @ weight + bias)[..., 0]
    return found


def rank_loss(output: Any, target: Any, weight: Any, group: Any) -> Any:
    """Return the pairwise logistic loss of each member, averaged: ln(1 + exp(-difference)).

    ``output`` and ``weight`` are [members, n], ``target`` and ``group`` [n]. A pair of one group
    counts by how much its weights differ, as in LambdaRank: weights are shares of the best speed,
    so that mistakes among the slow cost little.
    """
    torch = require_torch()
    later = (target[:, None] > target[None]) & (group[:, None] == group[None])
    gain = (weight[:, :, None] - weight[:, None]).abs() * (weight > 0)[:, :, None]
    gain = gain * (weight > 0)[:, None] * later
    loss = torch.nn.functional.softplus(output[:, None] - output[:, :, None])
    return (gain * loss).sum() / gain.sum().clamp(min=1e-6)


def _train(
    inputs: Rows, targets: Rows, weights: Rows, groups: NDArray[np.int64], seed: int
) -> Layers:
    """Minimise weighted squared error plus rank loss; all members in one batch of matrices."""
    torch = require_torch()
    members, count = weights.shape
    rng = np.random.default_rng(seed)
    sizes = (inputs.shape[1], HIDDEN, HIDDEN, 1)
    with one_thread():
        layers = []
        for wide, narrow in pairwise(sizes):
            drawn = rng.normal(0, np.sqrt(2 / wide), (members, wide, narrow))
            weight = torch.tensor(drawn, dtype=torch.float32, requires_grad=True)
            layers.append((weight, torch.zeros(members, 1, narrow, requires_grad=True)))
        x, y, w = (torch.from_numpy(np.ascontiguousarray(a)) for a in (inputs, targets, weights))
        g = torch.from_numpy(groups)
        decayed = [{"params": [weight for weight, _ in layers], "weight_decay": DECAY}]
        biases = [{"params": [bias for _, bias in layers], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([*decayed, *biases], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            at = torch.from_numpy(rng.permutation(count)[:BATCH])
            output, target, weight = _forward(layers, x[at]), y[at], w[:, at]
            loss = (weight * (output - target) ** 2).sum() / weight.sum()
            loss = loss + rank_loss(output, target, weight, g[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return tuple((weight.detach().numpy(), bias.detach().numpy()) for weight, bias in layers)


def _forward(layers: Sequence[Any], inputs: Any) -> Any:
    """Do as `forward`, with gradients."""
    torch = require_torch()
    hidden = inputs.expand(layers[0][0].shape[0], *inputs.shape)
    for weight, bias in layers[:-1]:
        hidden = torch.nn.functional.silu(torch.baddbmm(bias, hidden, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, hidden, weight)[..., 0]


@contextmanager
def one_thread() -> Iterator[None]:
    """Leave the other cores to those who build and measure meanwhile."""
    torch = require_torch()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pack(array: Rows) -> dict[str, Any]:
    data = pack_bytes(np.ascontiguousarray(array, "<f4").tobytes())
    return {"shape": list(array.shape), "data": data}


def _unpack(state: Mapping[str, Any]) -> Rows:
    flat = np.frombuffer(unpack_bytes(state["data"]), "<f4").astype(np.float32)
    return flat.reshape([int(size) for size in state["shape"]])
