"""Compression by tables, for targets without vpcompressd: every mask of lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import compile_function
from tvm.script import tirx as T

from wattune.ops.operator import Argument
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import Lanes
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.target import Target

AVX2 = Target.parse("cpu:avx2")


def test_tables_are_for_targets_without_compression() -> None:
    assert Lanes.of(AVX2, 8).tables
    assert Lanes.of(AVX2, 4).tables
    for name, count in (("avx512", 16), ("avx512", 8), ("generic", 4)):
        assert not Lanes.of(Target.parse(f"cpu:{name}"), count).tables


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.isa("avx2", "fma")
def test_every_mask(count: int) -> None:
    """The chosen lanes come first, in order, with their numbers and how many they are."""
    import tvm

    lanes, masks = Lanes.of(AVX2, count), 1 << count
    size = masks * count
    arguments = (
        Argument("chosen", (size,), "int32", "input"),
        Argument("scores", (size,), "float32", "input"),
        Argument("packed", (size,), "float32", "output"),
        Argument("listed", (size,), "int32", "output"),
        Argument("counts", (masks,), "int32", "output"),
    )

    def body(tensors: Tensors) -> None:
        with lanes.functions(), T.serial(masks) as mask:
            at = T.bind(mask * count)

            def chosen() -> Any:
                return tensors["chosen"].vload([at], lanes.i32) > lanes.each_int(0)

            scores = T.bind(tensors["scores"].vload([at], lanes.f32))
            vector.store(tensors["packed"], [at], lanes.compressed(scores, chosen()))
            numbers = T.bind(lanes.numbers(at))
            vector.store(tensors["listed"], [at], lanes.listed(numbers, chosen()))
            vector.store(tensors["counts"], [mask], lanes.counted(chosen()))

    chosen = (np.arange(masks)[:, None] >> np.arange(count) & 1).astype(np.int32)
    scores = np.random.default_rng(0).normal(size=(masks, count)).astype(np.float32)
    scores[chosen == 0] = np.nan
    found = [tvm.runtime.empty((size,), kind) for kind in ("float32", "int32")]
    counts = tvm.runtime.empty((masks,), "int32")
    inputs = [tvm.runtime.tensor(a.ravel()) for a in (chosen, scores)]
    compile_function(tensor_program(arguments, {}, body), AVX2)(*inputs, *found, counts)
    packed, listed = (np.asarray(each.numpy()).reshape(masks, count) for each in found)
    assert counts.numpy().tolist() == chosen.sum(1).tolist()
    for mask, row in enumerate(chosen > 0):
        few = int(row.sum())
        np.testing.assert_array_equal(packed[mask, :few], scores[mask, row])
        np.testing.assert_array_equal(listed[mask, :few], np.flatnonzero(row) + mask * count)
