"""The cost model on recorded measurements of real devices: what it must not fall below.

Nothing is timed. The tables of other tools have knobs alone; templates of ours have counts as well,
and are predicted better.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from wattune.compiler.accuracy import judge, read_evidence
from wattune.cost_models.evaluate import mean_accuracy

SPACES = Path(__file__).parents[2] / "benchmarks" / "spaces"
OWN = sorted(p for p in SPACES.glob("*.json.gz") if not p.name.startswith("convolution_milo"))
GPUS = [SPACES / f"convolution_milo_{name}.json.gz" for name in ("A100", "A4000")]


def figures(
    model: str, train: int, transfer: bool = False, tables: Sequence[Path] = GPUS
) -> dict[str, float]:
    """Return the mean figures over two splits of all tables."""
    found = mean_accuracy(judge(read_evidence(tables), model, train, 2, transfer))
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(("train", "pairwise", "spearman"), [(64, 0.81, 0.77), (256, 0.88, 0.90)])
def test_pairs_are_ordered_after_so_many_measurements(
    train: int, pairwise: float, spearman: float
) -> None:
    found = figures("xgboost", train)
    assert found["pairwise"] >= pairwise
    assert found["spearman"] >= spearman
    # The uncertainty is neither too small nor too large: a normal has 0.68 and 0.95.
    assert 0.5 <= found["within_1"] <= 0.85
    assert 0.8 <= found["within_2"] <= 0.99


def test_another_device_gives_a_warm_start() -> None:
    warm, cold = figures("xgboost", 16, transfer=True), figures("xgboost", 16)
    assert warm["pairwise"] >= 0.80
    assert warm["pairwise"] >= cold["pairwise"] + 0.1
    assert warm["peak_at_5"] > cold["peak_at_5"]


@pytest.mark.parametrize(("train", "transfer"), [(64, False), (16, True)])
def test_our_own_templates_are_known_better(train: int, transfer: bool) -> None:
    found = figures("xgboost", train, transfer, OWN)
    assert found["pairwise"] >= 0.80
    assert found["peak_at_5"] >= 0.90


def test_the_control_knows_nothing() -> None:
    assert abs(figures("random", 16)["pairwise"] - 0.5) < 0.05
