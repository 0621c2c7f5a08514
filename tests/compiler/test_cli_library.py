"""From a checkpoint to results by the command line alone: compile, pack, inspect, load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.compiler.checkpoints import config, tensors

import wattune as wt
from wattune.compiler import cli
from wattune.compiler.library.packed import load_packed
from wattune.ops.quantize import quantize_per_token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, its config and a library for its layers."""
    path = tmp_path_factory.mktemp("model")
    stored, _ = tensors(np.random.default_rng(0))
    save_file(stored, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config(linear_class="bitlinear")))
    words = ["--model", path / "config.json", "--tokens", "1,4", "--threads", "1"]
    words += ["--attention", "none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        status = cli.main([str(w) for w in ["compile", *words, "-o", path / "kernels.so"]])
    assert status == 0
    return path


def test_packed_layers_compute_what_the_checkpoint_means(folder: Path) -> None:
    words = ["pack", folder / "model.safetensors", "-o", folder / "packed.safetensors"]
    words += ["--library", folder / "kernels.so", "--config", folder / "config.json"]
    assert cli.main([str(w) for w in words]) == 0
    layers = load_packed(folder / "packed.safetensors")
    _, weights = tensors(np.random.default_rng(0))
    assert layers.keys() == weights.keys()
    kernel = wt.load(folder / "kernels.so").ternary_gemm
    for name, packed in layers.items():
        x = np.random.default_rng(1).standard_normal((3, weights[name].shape[1]), np.float32)
        q, s = quantize_per_token(x)
        sums = q.astype(np.int64) @ weights[name].T.astype(np.int64)
        # The bitlinear form divides by the stored scale of 2.5.
        np.testing.assert_allclose(kernel(x, packed), sums / 2.5 / s[:, None], rtol=1e-6)


def test_inspect_tells_what_files_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["inspect", str(folder / "kernels.so"), "--json"]) == 0
    library = json.loads(capsys.readouterr().out)
    assert (library["kind"], library["verified"]) == ("library", True)
    assert library == {**library, **json.loads((folder / "kernels.json").read_text())}
    assert cli.main(["inspect", str(folder / "kernels.so")]) == 0
    assert "ternary_gemm 4x37x16" in capsys.readouterr().out


def test_a_named_database_must_exist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder / "config.json"), "--db", str(folder / "typo.sqlite")]
    assert cli.main(["compile", *words, "-o", str(folder / "other.so")]) == 2
    assert "typo.sqlite does not exist" in capsys.readouterr().err
    assert not (folder / "other.so").exists()
