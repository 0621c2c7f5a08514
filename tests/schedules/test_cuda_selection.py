"""Key bounds, scores and the learned gate on an emulated GPU against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.cuda import AMPERE, check_kernel, check_other_sizes, check_samples

from wattune.ops import AttnGate, AttnGateCompress, BlockMinmax, BlockScore, operator

Case = tuple[Any, dict[str, Any]]

BOUNDS: tuple[Case, ...] = (
    (BlockMinmax(3, 60, 2, 128), {}),
    (BlockMinmax(3, 50, 3, 24, block_size=7, query_tokens=0, dtype="float16"), {"tokens": 4}),
    (BlockMinmax(2, 90, 2, 8, block_size=8, query_tokens=21, dtype="float32"), {"loads": 2}),
    (BlockMinmax(3, 70, 2, 64, query_tokens=0, layout="NHD", page_size=32), {"teams": 4}),
    # Pages that blocks cross.
    (BlockMinmax(2, 40, 2, 72, block_size=4, query_tokens=5, page_size=6), {"tokens": 1}),
)
SCORES: tuple[Case, ...] = (
    (BlockScore(3, 1300, 8, 2, 128), {}),
    (BlockScore(3, 300, 6, 2, 64, block_size=3, query_tokens=4, dtype="float16"), {"steps": 4}),
    (BlockScore(2, 70, 2, 2, 72, block_size=1, dtype="float32", scale=0.3), {"slots": 2}),
    (BlockScore(2, 400, 3, 1, 192, block_size=4), {"threads": 128, "lanes": 4, "slots": 2}),
    # Rows that the lanes of a team do not divide.
    (BlockScore(2, 90, 4, 2, 136, block_size=4), {}),
)
GATES: tuple[Case, ...] = (
    (AttnGate(3, 1000, 8, 2, 64, block_size=4), {"overlap": True, "resident": 2}),
    (AttnGate(5, 90, 4, 2, 40, gate_dim=72, block_size=7, dtype="float32"), {"requests": 4}),
    (AttnGate(2, 90, 6, 2, 128, query_mode="qavg", norm=False, dtype="float16"), {}),
    (AttnGate(3, 60, 6, 2, 32, 64, 1, "qavgproj", rope=False), {"columns": 8, "loads": 2}),
)
COMPRESSIONS: tuple[Case, ...] = (
    (AttnGateCompress(4, 70, 2, 64, block_size=16), {}),
    (AttnGateCompress(4, 60, 2, 40, 72, 7, 5, "minavg", dtype="float32"), {"loads": 2}),
    (
        AttnGateCompress(3, 60, 2, 128, 64, 8, 33, "max", norm=False, position_rule="last"),
        {"threads": 128, "columns": 2, "overlap": True},
    ),
    (AttnGateCompress(3, 40, 1, 16, 32, 4, 2, rope=False, dtype="float16"), {"threads": 512}),
)


@pytest.mark.parametrize(("problem", "knobs"), (*BOUNDS, *SCORES, *GATES, *COMPRESSIONS), ids=str)
def test_matches_the_reference(
    problem: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel(problem, monkeypatch, **knobs)


def test_an_older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernel(BlockMinmax(2, 40, 2, 16, block_size=8), monkeypatch, AMPERE)


@pytest.mark.parametrize(
    "problem",
    [
        BlockMinmax(3, 40, 2, 16, block_size=8, query_tokens=0),
        BlockScore(3, 90, 4, 2, 16, block_size=4),
        AttnGate(3, 90, 4, 2, 16, 32, block_size=4),
    ],
    ids=str,
)
def test_contexts_beyond_the_bucket_and_fewer_requests(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_other_sizes(problem, monkeypatch, context=1500, batch=2)


def test_bounds_are_keys_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BlockMinmax(1, 64, 1, 64, block_size=64, query_tokens=0)

    def tiny(self: Any, problem: Any, rng: np.random.Generator) -> dict[str, Any]:
        inputs: dict[str, Any] = original(self, problem, rng)
        # Numbers that arithmetic would flush to zero, of both signs.
        bits = rng.integers(1, 128, inputs["k_cache"].shape, dtype=np.uint16)
        signs = rng.integers(0, 2, bits.shape, dtype=np.uint16) << 15
        inputs["k_cache"] = (bits | signs).view(inputs["k_cache"].dtype)
        return inputs

    kind = type(operator(problem.operator))
    original: Any = kind.make_inputs
    monkeypatch.setattr(kind, "make_inputs", tiny)
    check_kernel(problem, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem", [BOUNDS[3][0], SCORES[1][0], GATES[0][0], COMPRESSIONS[1][0]], ids=str
)
def test_sampled_schedules(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(problem, monkeypatch)
