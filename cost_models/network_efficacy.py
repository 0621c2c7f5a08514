"""Scores of training records for networks: exact gradients of every record at every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wattune.cost_models.efficacy import Efficacy, Floats, Indices
from wattune.cost_models.matrix import Rows
from wattune.cost_models.networks import Scaling, one_thread, require_torch

# Plain gradient descent, as the definition has it; looked at every so many steps.
_STEPS, _EVERY, _RATE, _BATCH = 100, 10, 0.05, 32
_HIDDEN = 32
_TINY = 1e-12


def network_efficacy(
    matrix: Rows,
    labels: Floats,
    weights: Floats,
    target: Indices,
    noise: Floats,
    seed: int = 0,
    curvature: bool = False,
) -> Efficacy:
    """Score records [n] by training a small network once.

    Going backwards over checkpoints t, with g the gradient of a record's loss and co-state
    lambda_t = lambda_{t+1} + gradient of the target's loss (- rate x Hessian x lambda_{t+1} with
    ``curvature``): lqs = sum of rate |lambda| (|g_t| / |g_{t+1}|) cos(g_t, lambda). At the last
    checkpoint, which has no later one, the ratio is 1. ``noise`` as in `tree_efficacy`.
    """
    torch = require_torch()
    inputs = torch.from_numpy(Scaling.fit(matrix).apply(matrix))
    spread = max(float(labels.std()), _TINY)
    targets = torch.tensor((labels - labels.mean()) / spread, dtype=torch.float32)
    shares = torch.tensor(weights / weights.mean(), dtype=torch.float32)
    wanted = torch.from_numpy(target)
    with one_thread():
        path = _path(inputs, targets, shares, seed)
        count, ratio = len(labels), np.ones(len(labels))
        learnability, quality, tracin, lqs = np.zeros((4, count))
        costate: Any = _target_gradient(path[-1], inputs, targets, wanted)
        later: Floats | None = None
        for parameters in reversed(path[:-1]):
            gradients = sample_gradients(parameters, inputs, targets)
            norms = gradients.norm(dim=1).numpy().astype(np.float64) + _TINY
            if later is not None:
                ratio = norms / later
            length = float(costate.norm()) + _TINY
            cosine = (gradients @ costate).numpy() / norms / length
            now = _target_gradient(parameters, inputs, targets, wanted)
            learnability += ratio
            quality += cosine
            tracin += _RATE * (gradients @ now).numpy()
            lqs += _RATE * length * ratio * cosine
            bend = _bend(parameters, inputs, targets, costate) if curvature else 0.0
            costate, later = costate + now - _RATE * bend, norms
    return Efficacy(learnability, quality, tracin, lqs / (1 + (noise / (0.01 * spread)) ** 2))


def sample_gradients(parameters: Sequence[Any], inputs: Any, targets: Any) -> Any:
    """Return the gradient of each record's loss, [n, parameters]."""
    torch = require_torch()

    def loss(parameters: Sequence[Any], x: Any, y: Any) -> Any:
        return 0.5 * (_output(parameters, x[None])[0] - y) ** 2

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    return torch.cat([g.flatten(1) for g in each(tuple(parameters), inputs, targets)], dim=1)


def _path(inputs: Any, targets: Any, weights: Any, seed: int) -> list[tuple[Any, ...]]:
    """Train and return the parameters at every checkpoint, the last ones included."""
    torch = require_torch()
    rng = np.random.default_rng(seed)
    parameters = _start(inputs.shape[1], rng)
    gradient = torch.func.grad(
        lambda p, x, y, w: 0.5 * (w * (_output(p, x) - y) ** 2).mean(), argnums=0
    )
    path = []
    for step in range(_STEPS):
        if step % _EVERY == 0:
            path.append(parameters)
        at = torch.from_numpy(rng.permutation(len(targets))[:_BATCH])
        slopes = gradient(parameters, inputs[at], targets[at], weights[at])
        parameters = tuple(p - _RATE * s for p, s in zip(parameters, slopes, strict=True))
    return [*path, parameters]


def _start(width: int, rng: np.random.Generator) -> tuple[Any, ...]:
    torch = require_torch()
    sizes = ((width, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, 1))
    drawn: list[Any] = []
    for wide, narrow in sizes:
        weight = rng.normal(0, np.sqrt(1 / wide), (wide, narrow))
        drawn += [torch.tensor(weight, dtype=torch.float32), torch.zeros(narrow)]
    return tuple(drawn)


def _output(parameters: Sequence[Any], inputs: Any) -> Any:
    """Return the network's output, [n]."""
    torch = require_torch()
    hidden = inputs
    for at in (0, 2):
        hidden = torch.nn.functional.silu(hidden @ parameters[at] + parameters[at + 1])
    return (hidden @ parameters[4] + parameters[5])[:, 0]


def _mean_loss(inputs: Any, targets: Any) -> Any:
    def loss(parameters: Sequence[Any]) -> Any:
        return 0.5 * ((_output(parameters, inputs) - targets) ** 2).mean()

    return loss


def _flat(parts: Sequence[Any]) -> Any:
    return require_torch().cat([part.flatten() for part in parts])


def _target_gradient(parameters: Any, inputs: Any, targets: Any, wanted: Indices) -> Any:
    """Return the gradient of the target records' mean loss, [parameters]."""
    gradient = require_torch().func.grad(_mean_loss(inputs[wanted], targets[wanted]))
    return _flat(gradient(tuple(parameters)))


def _bend(parameters: Any, inputs: Any, targets: Any, direction: Any) -> Any:
    """Return the Hessian of the training loss times a direction, [parameters]."""
    torch = require_torch()
    sizes = [p.numel() for p in parameters]
    parts = [d.view_as(p) for d, p in zip(direction.split(sizes), parameters, strict=True)]
    gradient = torch.func.grad(_mean_loss(inputs, targets))
    _, bent = torch.func.jvp(gradient, (tuple(parameters),), (tuple(parts),))
    return _flat(bent)
