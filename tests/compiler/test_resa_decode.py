"""The example of rectified sparse decoding: errors, traffic, and what rectification writes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "examples" / "resa_decode.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("resa_decode", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["resa_decode"] = module
    spec.loader.exec_module(module)
    return module


def test_errors_grow_without_rectification_and_are_bounded_with(example: Any) -> None:
    problems = example.problems(example.PROMPT + 128)
    rows, traffic = example.decode(problems, example.references(problems), 128)
    first, last = rows[0], rows[-1]
    assert first.cache_sparse == first.cache_rectified, "nothing is rectified yet"
    assert last.cache_sparse > 2 * first.cache_sparse
    assert max(row.cache_rectified for row in rows) < 1.2 * first.cache_rectified
    assert last.rectified < last.sparse
    moved, dense = traffic["rectified"], traffic["dense"]["dense"]
    model = 1 / example.BLOCK + example.KEEP + 1 / example.EVERY
    # A short context: whole blocks and queries count for more than in the model.
    assert model < sum(moved.values()) / dense < 1.3 * model


def test_rectification_restores_the_dense_cache(example: Any) -> None:
    count, rng = example.EVERY, np.random.default_rng(1)
    problems = example.problems(example.PROMPT)
    run, model = example.references(problems), example.Transformer(rng)
    tokens = rng.integers(0, example.VOCABULARY, 3 * count)
    dense = example.Request(model, problems, run)
    for start in (0, count):
        dense.rewrite(tokens[start : start + count], start)
    sparse = dense.copy()
    for at in range(2 * count, 3 * count):
        dense.dense(tokens[at : at + 1], at)
        sparse.sparse(tokens[at : at + 1], at)
    before = sparse.copy()
    sparse.rewrite(tokens[2 * count :], 2 * count)
    for old, new, exact in zip(before.layers[1:], sparse.layers[1:], dense.layers[1:], strict=True):
        for name in ("k_cache", "v_cache"):
            rows = slice(2 * count, 3 * count)
            np.testing.assert_allclose(new[name][:, :, rows], exact[name][:, :, rows], atol=1e-4)
            assert np.abs(old[name] - exact[name])[:, :, rows].max() > 0.1
            np.testing.assert_array_equal(
                new[name][:, :, : 2 * count], old[name][:, :, : 2 * count]
            )


@pytest.mark.slow
def test_kernels_decode_as_the_references_do(
    example: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = example.problems(example.PROMPT + 32)
    expected, _ = example.decode(problems, example.references(problems), 32)
    monkeypatch.setattr(sys, "argv", ["resa_decode.py", "--tokens", "32"])
    assert example.main() == 0
    out = capsys.readouterr().out
    found = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [line[0] for line in found] == ["32"]
    for line, row in zip(found, expected, strict=True):
        wanted = (row.sparse, row.rectified, row.cache_sparse, row.cache_rectified)
        # A block may be chosen the other way where two score alike.
        assert [float(word) for word in line[1:]] == pytest.approx(wanted, rel=0.05, abs=2e-3)
    assert "1/bs + p + 1/f" in out
