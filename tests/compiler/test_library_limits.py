"""A library's check of integers that two sizes limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.compiler.libraries import attend

from wattune.compiler.library.loader import load
from wattune.compiler.library.package import compile
from wattune.errors import ArgumentError
from wattune.ops import operator
from wattune.ops.kv_cache_quantize import KVCacheQuantize
from wattune.schedules.target import Target


def test_the_lesser_of_two_limits_holds(tmp_path: Path) -> None:
    """Prompts are limited by their tokens and by the blocks of the cache that they go to."""
    problem = KVCacheQuantize(1, 300, 1, 64, dtype="float32", format="int8")
    inputs = operator(problem.operator).make_inputs(problem, np.random.default_rng(0))
    path = compile([problem], Target.native(threads=1)).export(tmp_path / "kernels.so")
    kernels = load(path)
    attend(kernels, problem, inputs)
    block = problem.quantized.block_tokens
    blocks = inputs["k_codes"].shape[2]
    assert blocks * block <= 300 < (blocks + 1) * block
    for length, size, number in ((301, "tokens", 300), (2 * block, "packed_blocks", 1)):
        given = {**inputs, "seq_lens": np.array([length], np.int32)}
        if size == "packed_blocks":
            names = ("k_codes", "k_params", "v_codes", "v_params")
            given.update({name: inputs[name][:, :, :1].copy() for name in names})
        with pytest.raises(ArgumentError, match=rf"seq_lens.* is {length}.*\({size} is {number}\)"):
            attend(kernels, problem, given)
    header = path.with_suffix(".h").read_text()
    assert f"0 to tokens, at most packed_blocks * {block} + {block - 1}" in header
