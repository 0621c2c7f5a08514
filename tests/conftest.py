"""Shared fixtures: gates of instruction sets and of nvcc, golden files, an emulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator.cuda import driver, toolkit
from wattune.compiler.cuda.device_code import device_compiler
from wattune.compiler.cuda.nvcc import Nvcc
from wattune.schedules import nvidia
from wattune.schedules.target import Target

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs nvcc, or a feature of the CPU, which is not here."""
    if item.get_closest_marker("nvcc") and Nvcc.find() is None:
        pytest.skip("no nvcc: pip install 'wattune[cuda]'")
    here = Target.native()
    for marker in item.iter_markers("isa"):
        missing = [name for name in marker.args if not here.has(name)]
        if missing:
            pytest.skip(f"this CPU has no {', '.join(missing)}")


class Golden:
    """Compares with ``tests/golden/<module>/<test>.txt``: ``assert golden == text``."""

    def __init__(self, path: Path, update: bool) -> None:
        self.path = path
        self.update = update

    def __eq__(self, text: object) -> bool:
        if self.update:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(str(text))
        return self.path.exists() and self.path.read_text() == str(text)

    def __repr__(self) -> str:
        if not self.path.exists():
            return f"<no {self.path}: run pytest --update-golden>"
        return self.path.read_text()

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    module = Path(str(request.node.path)).stem
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in request.node.name)
    yield Golden(GOLDEN / module / f"{name}.txt", request.config.getoption("--update-golden"))


# As they are: a test may put something else in their places.
_KNOWN = (nvidia.driver, nvidia.gpu_fields, device_compiler)


def _forget_gpu() -> None:
    for known in _KNOWN:
        known.cache_clear()


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test depend on the machine's GPU, or on one that an earlier test emulated."""
    monkeypatch.setattr(nvidia, "LIBRARY", "libcuda-hidden-by-tests.so.1")
    _forget_gpu()
    yield
    _forget_gpu()


@pytest.fixture
def emulated_gpu(_no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Make the emulator this machine's GPU, its nvcc included, for child processes too."""
    driver.install()
    for name, value in toolkit.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(nvidia, "LIBRARY", driver.NAME)
    return Target.native_gpu()


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Undo what peers set for a process of their own: threads, and no gradients."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
