"""CUDA merge of attention states against the reference, on the emulator."""

from __future__ import annotations

from typing import Any

import pytest
from tests.schedules.cuda import check_kernel

from wattune.ops.merge_states import MergeStates


@pytest.mark.parametrize(
    ("sizes", "fields", "knobs"),
    [
        ((7, 2, 6, 128), {}, {}),
        ((3, 5, 4, 192), {"dtype": "float16"}, {"at_once": 2, "threads": 64}),
        ((1, 33, 3, 12), {"dtype": "float32"}, {"at_once": 16, "threads": 256}),
        ((2, 1, 3, 8), {}, {}),
    ],
)
def test_merge(
    sizes: tuple[int, int, int, int],
    fields: dict[str, Any],
    knobs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Empty states, poison in their outputs and large exponents are in the second check."""
    check_kernel(MergeStates(*sizes, **fields), monkeypatch, **knobs)
