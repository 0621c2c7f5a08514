"""Fused experts as a library: packing, pieces, ids that callers get wrong, shards of experts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattune.compiler.bench.case import Setup
from wattune.compiler.bench.data import draw, work_of
from wattune.compiler.bench.ours import Ours
from wattune.compiler.library import load
from wattune.compiler.library.package import compile
from wattune.errors import ArgumentError
from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.ops.operator import Array
from wattune.schedules.target import Target

OPERATOR = operator("fused_moe")
PROBLEM = FusedMoe(8, 6, 3, 40, 24)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("experts") / "k.so"
    buckets = [FusedMoe(tokens, 6, 3, 40, 24) for tokens in (1, 8)]
    compile(buckets, Target.native(threads=1)).export(path)
    return path


@pytest.fixture(scope="module")
def kernels(library: Path) -> Any:
    return load(library).fused_moe


@pytest.fixture(scope="module")
def inputs() -> dict[str, Array]:
    return OPERATOR.make_inputs(PROBLEM, np.random.default_rng(5))


@pytest.fixture(scope="module")
def packed(kernels: Any, inputs: dict[str, Array]) -> Any:
    return kernels.pack(inputs["gate_up_proj"], inputs["down_proj"])


def close(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), 1e-2, 5e-3)


@pytest.mark.parametrize("tokens", [0, 1, 5, 8, 21])
def test_any_number_of_tokens(
    kernels: Any, inputs: dict[str, Array], packed: Any, tokens: int
) -> None:
    """None, one, fewer than the bucket, and more: in pieces."""
    rows = {
        name: np.resize(inputs[name], (tokens, *inputs[name].shape[1:]))
        for name in ("hidden_states", "topk_weights", "topk_ids")
    }
    got = kernels(rows["hidden_states"], packed, rows["topk_weights"], rows["topk_ids"])
    close(got, OPERATOR.reference(PROBLEM, {**inputs, **rows})["out"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 0, 1], r"topk_ids\[0, 1\] is 0, and so is \[0, 0\]"),
        ([0, 6, 1], r"topk_ids\[0, 1\] is 6; allowed: -1 to 5"),
        ([-2, 0, 1], r"topk_ids\[0, 0\] is -2; allowed: -1 to 5"),
    ],
)
def test_wrong_ids_are_named(
    kernels: Any, inputs: dict[str, Array], packed: Any, ids: list[int], message: str
) -> None:
    x, shares = inputs["hidden_states"][:1], inputs["topk_weights"][:1]
    with pytest.raises(ArgumentError, match=message):
        kernels(x, packed, shares, np.array([ids], np.int32))


def test_packs_from_before_up_began_a_block_are_refused(
    kernels: Any, inputs: dict[str, Array], packed: Any
) -> None:
    """Gate and up once followed each other within a block: often as many bytes, otherwise read."""
    assert packed.layout.endswith(":halves=2")
    old = dataclasses.replace(packed, layout=packed.layout.removesuffix(":halves=2"))
    x, shares, ids = (inputs[n] for n in ("hidden_states", "topk_weights", "topk_ids"))
    with pytest.raises(ArgumentError, match=f"packed data has layout {old.layout}, .*halves=2"):
        kernels(x, old, shares, ids)


def test_grouped_gemm_names_wrong_ids_too(tmp_path: Path) -> None:
    problem = GroupedGemm(4, 5, 3, 20, 24)
    compile([problem], Target.native(threads=1)).export(tmp_path / "k.so")
    kernel = load(tmp_path / "k.so").grouped_gemm
    inputs = operator("grouped_gemm").make_inputs(problem, np.random.default_rng(7))
    packed = kernel.pack(inputs["weights"])
    for ids, message in (
        ([4, 1, 4], r"topk_ids\[0, 2\] is 4, and so is \[0, 0\]"),
        ([0, 1, 5], r"topk_ids\[0, 2\] is 5; allowed: -1 to 4"),
        ([0, 1, -5], r"topk_ids\[0, 2\] is -5; allowed: -1 to 4"),
    ):
        with pytest.raises(ArgumentError, match=message):
            kernel(inputs["x"][:1], packed, np.array([ids], np.int32))
    # Several may be elsewhere: -1 is no expert.
    got = kernel(inputs["x"][:1], packed, np.full((1, 3), -1, np.int32))
    assert got.shape == (1, 3, 20)
    assert not np.asarray(got).any()


def test_shards_of_experts_sum_to_the_whole(
    kernels: Any, inputs: dict[str, Array], packed: Any
) -> None:
    """Each shard gets -1 for the experts that the other one has; one may have none of a token."""
    x, shares, ids = (inputs[n] for n in ("hidden_states", "topk_weights", "topk_ids"))
    ids = ids.copy()
    ids[0] = [0, 1, 2]
    total = np.zeros(x.shape, np.float32)
    for low, high in ((0, 3), (3, 6)):
        here = np.where((ids >= low) & (ids < high), ids, -1).astype(np.int32)
        part = kernels(x, packed, shares, here)
        total += part.astype(np.float32)
    assert not part[0].any()
    close(total, kernels(x, packed, shares, ids))


def test_torch_packs_and_calls(kernels: Any, inputs: dict[str, Array], packed: Any) -> None:
    torch = pytest.importorskip("torch")

    def tensor(name: str) -> Any:
        array = inputs[name]
        if array.dtype == np.dtype("bfloat16"):
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    again = kernels.pack(tensor("gate_up_proj"), tensor("down_proj"))
    for name, data in packed.data.items():
        np.testing.assert_array_equal(again.data[name], data)
    got = kernels(tensor("hidden_states"), again, tensor("topk_weights"), tensor("topk_ids"))
    assert got.dtype == torch.bfloat16
    close(got.float().numpy(), OPERATOR.reference(PROBLEM, inputs)["out"])


@pytest.mark.parametrize("footprint", [0, 1 << 20])
def test_benchmarks_rotate_both_weights(library: Path, footprint: int) -> None:
    data = draw(PROBLEM, 0)
    moved = work_of(PROBLEM, 0).bytes
    case = Ours(Setup(PROBLEM, data.inputs, data.expected, moved, 1, footprint, str(library)))
    assert case.error() <= case.tolerance
    assert (case.copies > 1) == (footprint > 0)
    for name in ("w1", "w2"):
        places = {packed.data[name].ctypes.data for (packed,), _ in case.sets}
        assert len(places) == case.copies
