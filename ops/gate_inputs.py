"""Inputs of the learned gate's operators: weights that keep values of order one, and poison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wattune.ops.dtypes import numpy_dtype, round_to
from wattune.ops.gate_parts import block_count, cos_sin_table
from wattune.ops.operator import Argument, Array


def draw(problem: Any, arguments: Sequence[Argument], rng: np.random.Generator) -> dict[str, Array]:
    """Draw normal values for every float input and state, and the rotary table."""
    inputs: dict[str, Array] = {}
    for argument in arguments:
        if argument.role not in ("input", "state") or argument.dtype == "int32":
            continue
        shape = argument.concrete(problem.extents)
        if argument.name == "cos_sin_cache":
            inputs[argument.name] = cos_sin_table(*shape)
            continue
        values = rng.standard_normal(shape, dtype=np.float32)
        if argument.name.startswith("w"):
            values *= np.float32(np.prod(shape[1:-1]) ** -0.5)
        if argument.name.endswith("_norm"):
            values = np.float32(1) + np.float32(0.1) * values
        inputs[argument.name] = round_to(values, problem.dtype)
    return inputs


def compress_inputs(
    problem: Any,
    arguments: Sequence[Argument],
    seq_lens: Array,
    rng: np.random.Generator,
    hard: bool = False,
) -> dict[str, Array]:
    """Draw inputs of `attn_gate_compress`; hard: poison in rows and slots that hold nothing.

    Entries of blocks that are still open are zero, as earlier calls left them.
    """
    inputs = {**draw(problem, arguments, rng), "seq_lens": seq_lens}
    ring, entries = inputs["k_remainder"], inputs["k_compressed"]
    for request, length in enumerate(seq_lens.astype(np.int64)):
        old = max(0, length - problem.query_tokens)
        if old % problem.block_size:
            entries[request, :, old // problem.block_size] = 0
        if hard:
            # Not NaN: what stays as it was is compared like what is computed.
            entries[request, :, block_count(old, problem.block_size) :] = np.inf
            ring[request, :, old % problem.block_size :] = np.nan
            inputs["k"][request, : max(0, problem.query_tokens - length)] = np.nan
    return inputs


def gate_inputs(
    problem: Any,
    arguments: Sequence[Argument],
    seq_lens: Array,
    rng: np.random.Generator,
    hard: bool = False,
) -> dict[str, Array]:
    """Draw inputs of `attn_gate`: the last entry is zero where the block is open; hard: poison."""
    inputs = {**draw(problem, arguments, rng), "seq_lens": seq_lens}
    entries = inputs["k_compressed"]
    for request, length in enumerate(seq_lens.astype(np.int64)):
        blocks = block_count(length, problem.block_size)
        if length % problem.block_size:
            entries[request, :, blocks - 1] = 0
        if hard:
            entries[request, :, blocks:] = np.array(np.nan, numpy_dtype(problem.dtype))
            if not length:
                inputs["q"][request] = np.nan
    return inputs
