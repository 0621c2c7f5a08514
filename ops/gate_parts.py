"""What the operators of learned gates and of block scores share: slots, rotary tables, norms.

A request's keys are cut into blocks of ``block_size``. Per-block data is [batch, kv_heads,
score_blocks, width]: ``score_blocks``, the slots of a request, is a size that chooses no kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.ops.operator import Argument, Array, Limit, Values

SLOTS = "score_blocks"
POSITIONS = "max_position"
EPSILON = 1e-6

Floats = NDArray[np.float64]


def slots(problem: Any, name: str, width: int, updated: bool = False) -> Argument:
    """Return per-block data as a state with ``width`` elements a slot."""
    shape = ("batch", problem.kv_heads, SLOTS, width)
    return Argument(name, shape, problem.dtype, "state", updated=updated)


def scores(problem: Any, name: str) -> Argument:
    """Return one float32 number a slot as an output."""
    return Argument(name, ("batch", problem.kv_heads, SLOTS), "float32", "output")


def lengths(problem: Any) -> Argument:
    """Return ``seq_lens``: tokens of each request, limited by its slots."""
    values = Values(0, Limit(SLOTS, times=problem.block_size), maximum="context")
    return Argument("seq_lens", ("batch",), "int32", "input", values=values)


def rotary_table(problem: Any) -> tuple[Argument, ...]:
    """Return ``cos_sin_cache`` where the gate rotates; positions beyond its end use its last row.

    vLLM's convention: row p holds the gate_dim / 2 cosines of position p, then the sines.
    """
    if not problem.rope:
        return ()
    shape = (POSITIONS, problem.gate_dim)
    return (Argument("cos_sin_cache", shape, "float32", "input"),)


def norm_weight(problem: Any, name: str) -> tuple[Argument, ...]:
    """Return the weight of the RMSNorm [gate_dim], where there is one."""
    if not problem.norm:
        return ()
    return (Argument(name, (problem.gate_dim,), problem.dtype, "input"),)


def cos_sin_table(positions: int, width: int, theta: float = 1e6) -> Array:
    """Compute a ``cos_sin_cache`` for frequencies theta^(-2i / width)."""
    frequencies = theta ** (-np.arange(0, width, 2) / width)
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


def rms_norm(rows: Floats, weight: Array) -> Floats:
    """Return rows / sqrt(mean(rows^2) + 1e-6) * weight."""
    mean: Floats = (rows**2).mean(-1, keepdims=True)
    found: Floats = rows / np.sqrt(mean + EPSILON) * weight.astype(np.float64)
    return found


def rotate(rows: Floats, table: Array, positions: Any) -> Floats:
    """Rotate the halves of rows against each other (NeoX) by the table's rows."""
    angles = table[np.minimum(positions, len(table) - 1)].astype(np.float64)
    cos, sin = np.split(angles, 2, -1)
    low, high = np.split(rows, 2, -1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


def gate_row(problem: Any, inputs: Any, norm: str, rows: Floats, positions: Any) -> Floats:
    """Finish rows of a gate's branch: norm and rotation, where the problem has them."""
    if problem.norm:
        rows = rms_norm(rows, inputs[norm])
    return rotate(rows, inputs["cos_sin_cache"], positions) if problem.rope else rows


def block_count(length: int, block_size: int) -> int:
    """Return the blocks of a request, the incomplete last one included."""
    return -(-length // block_size)


def ragged(batch: int, context: int, rng: np.random.Generator) -> Array:
    """Draw lengths of requests: one nearly full, one empty."""
    found = rng.integers(1, context + 1, batch).astype(np.int32)
    found[0] = context - context // 7
    if batch > 1:
        found[-1] = 0
    return found
