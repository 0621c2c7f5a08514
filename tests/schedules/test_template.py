"""Templates: the hash of their source covers all that they are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wattune.schedules import template
from wattune.schedules.template import sources

FOLDERS = Path(template.__file__).parent
MODULES = [module for modules in template._MODULES.values() for module in modules]

# What templates are told and asked in, but not made of.
TERMS = {f"{name}.py" for name in ("__init__", "candidate", "space", "target", "template")}

LOADED = """
import sys
from importlib import import_module
import tvm.script

for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("wattune.schedules")]:
        del sys.modules[name]
    import_module(module)
    found = [m for name, m in sys.modules.items() if name.startswith("wattune.schedules")]
    print(module, *(m.__file__ for m in found))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[Path]]:
    """Return the files of this folder that are loaded with each module of templates."""
    command = [sys.executable, "-c", LOADED, *MODULES]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: {Path(f).resolve() for f in files} for name, *files in map(str.split, lines)}


@pytest.mark.parametrize("module", MODULES)
def test_hash_covers_all_that_is_imported(module: str, loaded: dict[str, set[Path]]) -> None:
    folder = FOLDERS.joinpath(*module.split(".")[2:]).resolve()
    here = {path for path in loaded[module] if path.is_relative_to(FOLDERS.resolve())}
    terms = {FOLDERS.resolve() / name for name in TERMS}
    assert folder / "__init__.py" in here
    assert here - terms <= {path.resolve() for path in sources(folder)}


@pytest.mark.parametrize("module", MODULES)
def test_only_quantised_attention_shares_the_templates_of_another(module: str) -> None:
    kind, name = module.split(".")[2:]
    others = {path.parent.name for path in sources(FOLDERS / kind / name)} - {name, kind}
    expected = {"attention"} if name == "quantized_attention" else set()
    assert others - {FOLDERS.name} == expected
