"""The wheel, installed alone in a clean environment, from a directory that is not the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("compiler", "cost_models", "ops", "schedules")
SOURCES = ("pyproject.toml", "setup.py", "README.md", "src", *PARTS)

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: str | Path = "/") -> str:
    """Run outside of the checkout and without its paths."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: a build in place leaves files that the next one would pick up."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, source)
    (path,) = out.glob("wattune-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has the wheel and what a deployment needs, nothing else."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", venv)
    found = venv / "bin" / "python"
    run(found, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    return found


def test_every_file_beside_the_code_is_in_the_wheel(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in packed} == {"wattune"}
    expected = {}
    for folder, prefix in [(ROOT / "src" / "wattune", "wattune")] + [
        (ROOT / part, f"wattune/{part}") for part in PARTS
    ]:
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            if (
                path.is_file()
                and "__pycache__" not in parts
                and (prefix != "wattune" or len(parts) == 1)
            ):
                expected["/".join((prefix, *parts))] = path.read_bytes()
    assert packed == set(expected)
    assert {name: archive.read(name) for name in packed} == expected


def test_only_the_package_is_importable(python: Path) -> None:
    code = """
import importlib.util as util
for name in ("ops", "compiler", "schedules", "cost_models", "tests", "setup", "benchmarks"):
    assert util.find_spec(name) is None, name
import wattune
print(wattune.__file__)
"""
    assert "site-packages" in run(python, "-c", code)


def test_importing_is_light(python: Path) -> None:
    code = """
import sys
import wattune
heavy = {"tvm", "tvm_ffi", "torch", "xgboost", "numpy", "click", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
from wattune import Target, TernaryGemm, load
Target.native(), TernaryGemm(1, 64, 64), load
heavy = {"tvm", "torch", "xgboost", "click", "matplotlib", "ml_dtypes"} & set(sys.modules)
assert not heavy, heavy
"""
    run(python, "-c", code)


def test_the_command_says_what_is_missing(python: Path) -> None:
    done = subprocess.run(
        [python.parent / "wattune", "ops"], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'wattune[tune]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_library_runs_where_there_is_no_compiler(python: Path, tmp_path: Path) -> None:
    problem = '{"operator": "ternary_gemm", "tokens": 4, "out_features": 37, "in_features": 129}'
    library = tmp_path / "kernels.so"
    compile_words = ("compile", "--problem", problem, "--threads", "1", "-o", library)
    run(sys.executable, "-m", "wattune.compiler.cli", *compile_words, cwd=tmp_path)
    code = f"""
import importlib.util as util
assert util.find_spec("tvm") is None and util.find_spec("torch") is None
import numpy as np
import wattune
from wattune.ops.quantize import quantize_per_token
rng = np.random.default_rng(0)
weights = rng.integers(-1, 2, (37, 129), dtype=np.int8)
x = rng.standard_normal((3, 129), np.float32)
kernels = wattune.load({str(library)!r})
y = kernels.ternary_gemm(x, kernels.ternary_gemm.pack(weights, scale=0.5))
q, s = quantize_per_token(x)
expected = q.astype(int) @ weights.T.astype(int) * 0.5 / s[:, None]
np.testing.assert_allclose(y, expected, rtol=1e-6)
"""
    run(python, "-c", code)
