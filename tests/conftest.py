"""Shared fixtures: gates of instruction sets and of nvcc, golden files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wattune.compiler.cuda.nvcc import Nvcc
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
