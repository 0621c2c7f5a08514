"""Planted mistakes in a kernel's source, and what the tests of several kernels do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.emulator.cuda.run import LaunchError

from wattune.compiler.cuda import device_code
from wattune.errors import MissingDependencyError

# By name: what is replaced by what; the words of the failure, or "" for wrong values.
Mutants = Mapping[str, tuple[str, str, str]]


def assert_caught(source: str, mutant: tuple[str, str, str], wrong: Callable[[str], bool]) -> None:
    """Expect the launch to fail with the mutant's words, or ``wrong`` to say so of the values."""
    right, mistake, words = mutant
    assert source.count(right) == 1
    mutated = source.replace(right, mistake)
    if words:
        with pytest.raises(LaunchError, match=words):
            wrong(mutated)
    else:
        assert wrong(mutated)


def usage_of(source: str, kernel: str) -> Any:
    """Return what a kernel takes of a GPU, or skip where nothing compiles for one."""
    try:
        image = device_code.compile_image(source, ["sm_90a"])
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return image.usage[kernel, "sm_90a"]
