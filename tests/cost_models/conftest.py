from __future__ import annotations

import pytest
from tests.cost_models.made_up import World, lone_world


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world in which the made-up template is the only one."""
    return lone_world(monkeypatch)
