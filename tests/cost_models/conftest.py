from __future__ import annotations

import pytest
from tests.cost_models.made_up import World

from wattune.schedules import template


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world in which the made-up template is the only one."""
    made = World()
    monkeypatch.setattr(template, "_templates", lambda kind: (made.template,))
    return made
